"""From a supernet to files that a device loads."""
