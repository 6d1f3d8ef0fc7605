"""Subnet trainers: they choose the subnets of each training step and compute the loss."""
