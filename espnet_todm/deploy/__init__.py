"""Extraction, fine-tuning, export and packing of subnets, and the runtimes for exported models."""
