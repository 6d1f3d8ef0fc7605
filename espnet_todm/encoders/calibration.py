"""Calibration of batch norms: statistics for a subnet that is no named size."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Callable

import torch
from torch import nn

from espnet_todm.components import Subnet
from espnet_todm.elastic.convolution import ElasticConvolution
from espnet_todm.encoders.interctc import Between
from espnet_todm.encoders.passes import SubsampledFeatures
from espnet_todm.encoders.supernet import SupernetEncoder


def needs_calibration(encoder: SupernetEncoder, subnet: Subnet) -> bool:
    """Whether the batch norms lack statistics of this subnet. Named sizes gather their own during training."""
    return bool(_batch_norms(encoder)) and encoder.sizes.get(subnet.name) != subnet


@torch.no_grad()
def calibrate(
    encoder: SupernetEncoder, utterances: Iterable[SubsampledFeatures], between: Callable[[], Between] = Between
) -> None:
    """Estimate the statistics of all batch norms again, as the mean over utterances.

    ``between`` returns the argument of ``blocks`` for self-conditioning. The encoder is in evaluation mode afterwards.
    """
    for count, utterance in enumerate(utterances, 1):
        for module in _batch_norms(encoder):
            module.average_over(count)
        encoder.blocks(utterance, between=between())
    encoder.eval()


def _batch_norms(encoder: SupernetEncoder) -> list[ElasticConvolution]:
    modules = (module for module in encoder.modules() if isinstance(module, ElasticConvolution))
    return [module for module in modules if isinstance(module.norm, nn.BatchNorm1d)]
