"""Comparisons of methods: plans, their trainings, and the report of sizes against the same sizes trained alone."""
