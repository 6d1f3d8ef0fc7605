"""From features to texts, and what decoding takes."""
