"""Latency of an encoder's components: measurement and fit."""
