"""Search for good subnets of a trained supernet."""
