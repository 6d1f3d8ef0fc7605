"""Prediction networks of transducers."""
