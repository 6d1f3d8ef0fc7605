"""The small supernet experiments that these tests work on."""

from tests.tiny_experiment import experiment, layer_norm_experiment, transducer_experiment

__all__ = ["experiment", "layer_norm_experiment", "transducer_experiment"]
