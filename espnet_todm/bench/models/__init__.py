"""Latency and memory of whole models, measured in processes of their own."""
