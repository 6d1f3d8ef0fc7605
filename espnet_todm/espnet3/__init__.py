"""The front door for ESPnet 3, whose configurations name classes by their dotted paths."""
