"""Commands that score and report."""
