"""The ESPnet model of ``model: todm`` and its parts."""
