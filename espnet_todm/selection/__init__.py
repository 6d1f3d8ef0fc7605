"""Who picks the subnets."""
