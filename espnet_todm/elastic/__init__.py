"""Layers that run full, sliced or gated, list their components, and extract."""
