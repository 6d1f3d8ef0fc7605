"""The ESPnet model classes that a config names."""
