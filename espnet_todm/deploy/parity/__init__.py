"""The parity gate: checks that every runtime gives the same results as the supernet's slice."""
