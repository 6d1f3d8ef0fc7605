"""Statistics of batch norms for subnets that gathered none during training."""

from __future__ import annotations

import torch

from espnet_todm.components import Subnet
from espnet_todm.encoders.calibration import calibrate, needs_calibration
from tests.conftest import conformer, random_subnet, speech


def test_calibrated_statistics_are_the_mean_over_utterances() -> None:
    encoder = conformer(sizes={"small": {"depth": 0.67, "ffn": 0.5}})
    utterances = [encoder.subsample(*speech(1, frames, frames)) for frames in (30, 40, 50)]

    def calibrated(*chosen: int) -> torch.Tensor:
        small = encoder.extract(encoder.find_subnet("small"))
        calibrate(small, (utterances[i] for i in chosen))
        assert not small.training
        return small.encoders[0].conv_module.norm.running_mean

    torch.testing.assert_close(calibrated(0, 1, 2), torch.stack([calibrated(i) for i in range(3)]).mean(0))


def test_only_subnets_without_statistics_of_their_own_need_calibration() -> None:
    encoder = conformer(sizes={"small": {"ffn": 0.5}})
    small = encoder.find_subnet("small")
    assert not needs_calibration(encoder, small)
    assert needs_calibration(encoder, random_subnet(encoder, 0))
    assert needs_calibration(encoder, Subnet("small", encoder.find_subnet("full").components))
    assert not needs_calibration(conformer(conv_norm="layer_norm"), random_subnet(encoder, 0))
