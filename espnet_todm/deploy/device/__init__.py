"""Measured time and memory of whole models on this machine."""
