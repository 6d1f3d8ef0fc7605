"""What a model's card says about who can load it."""

from __future__ import annotations

from typing import Any

import pytest

from espnet_todm.report.model_card import espnet_example

STOCK = {"encoder": "conformer", "model": "espnet", "frontend": "default", "specaug": "specaug", "decoder": None}


@pytest.mark.parametrize(
    ("changes", "alone"),
    [
        ({}, True),
        ({"frontend": None, "input_size": 80}, True),
        ({"encoder": "todm_conformer"}, False),
        ({"frontend": "todm_fbank"}, False),
        ({"specaug": "todm_specaug"}, False),
        ({"model": "todm", "decoder": "todm_stateless"}, False),
    ],
)
def test_the_example_registers_this_package_where_a_part_is_its_own(changes: dict[str, Any], alone: bool) -> None:
    example = espnet_example({"name": "small"}, {**STOCK, **changes})
    assert ("espnet_todm.register()" not in example) == alone
