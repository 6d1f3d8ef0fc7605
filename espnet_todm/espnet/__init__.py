"""Everything that adapts to ESPnet: registries, options, configurations, trainer, statistics, the building of models."""
