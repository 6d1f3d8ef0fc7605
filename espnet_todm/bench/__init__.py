"""Benchmarks on the local machine: components, whole models, real-time factor, training steps."""
