"""Selections: methods that pick the subnets of a step, or learn which components a size keeps."""
