"""Measured time of single components, and what it predicts for a subnet."""
