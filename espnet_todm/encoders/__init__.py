"""Supernet encoders made of elastic layers."""
