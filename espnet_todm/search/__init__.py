"""Search for the best subnets of a trained supernet."""
