"""Repair of int8 exports: what quantisation damages, and the remedies, each measured on speech."""
