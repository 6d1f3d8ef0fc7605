"""What one training step does with the picked subnets."""
