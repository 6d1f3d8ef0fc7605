"""Latency of an encoder's components, measured and fitted."""
