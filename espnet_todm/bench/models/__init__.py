"""Latency and memory of whole models, each measured in its own subprocess."""
