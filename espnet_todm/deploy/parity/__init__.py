"""The gate: that every runtime computes what the supernet's slice computes."""
