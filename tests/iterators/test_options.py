"""What iterator_conf allows."""

from __future__ import annotations

from typing import Any

import pytest

from espnet_todm.errors import UserError
from espnet_todm.iterators.options import LhotseOptions


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": None}, "iterator_conf.train: None, but cuts.jsonl.gz or a Shar folder is needed"),
        ({"valid": 3}, "iterator_conf.valid: 3, but a path"),
        ({"features": "fly"}, "iterator_conf.features: 'fly' is unknown; allowed: stored, on_the_fly, none"),
        ({"max_duration": 0}, "iterator_conf.max_duration: 0 is not allowed"),
        ({"quadratic_duration": -1}, "iterator_conf.quadratic_duration: -1"),
        ({"num_buckets": 0}, "iterator_conf.num_buckets: 0"),
        ({"buffer_size": 1.5}, "iterator_conf.buffer_size: 1.5"),
        ({"max_cuts": 0}, "iterator_conf.max_cuts: 0"),
        ({"min_seconds": 3, "max_seconds": 2}, "iterator_conf.max_seconds: 2 is not allowed"),
        ({"speed_factors": "0.9 1.1"}, "iterator_conf.speed_factors: '0.9 1.1', but a list of speeds is expected"),
        ({"speed_factors": [3]}, "iterator_conf.speed_factors: 3"),
        (
            {"features": "stored", "speed_factors": [0.9]},
            "iterator_conf.speed_factors: needs audio, but features: stored",
        ),
        ({"features": "stored", "noise": "x"}, "iterator_conf.noise: needs audio"),
        ({"noise_snr": [20, 10]}, "iterator_conf.noise_snr: [20, 10], but a number or [lowest, highest]"),
        ({"noise_share": 2}, "iterator_conf.noise_share: 2"),
        ({"resume": "maybe"}, "iterator_conf.resume: 'maybe' is unknown; allowed: exact, next_pass"),
    ],
)
def test_wrong_values_end_in_one_line(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        LhotseOptions(**{"train": "cuts", "features": "none", **wrong})
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_ratio_of_speech_to_noise_is_a_number_or_two() -> None:
    assert LhotseOptions(train="cuts", noise_snr=5).snr == (5, 5)
    assert LhotseOptions(train="cuts", noise_snr=[5, 8.5]).snr == (5, 8.5)
