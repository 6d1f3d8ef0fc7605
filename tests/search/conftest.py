"""A search runs on the experiments that the tests of deployment train."""

from tests.deploy.conftest import experiment, layer_norm_experiment, transducer_experiment

__all__ = ["experiment", "layer_norm_experiment", "transducer_experiment"]
