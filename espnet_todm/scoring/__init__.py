"""Word and character errors, and what a difference between two rates is worth."""
