"""The interface to ESPnet: registries, options, configurations, trainer, statistics, and construction of models."""
