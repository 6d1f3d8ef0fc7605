"""Corpora, features and tokens for the recipes."""
