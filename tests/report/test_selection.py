"""The analysis of chosen components: pictures of what cards say, and words that fit them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml

from espnet_todm.components import FULL, Key, Subnet
from espnet_todm.errors import UserError
from espnet_todm.report.selection import Choice, choices, describe, read_history, share_table
from espnet_todm.report.selection_page import selection_section
from espnet_todm.util.files import to_json
from tests.cards import write_card
from tests.conftest import conformer

OPTIONS = {"output_size": 16, "attention_heads": 4, "linear_units": 32, "num_blocks": 3, "macaron_style": True}
ENCODER = {**OPTIONS, "rel_pos_type": "latest", "cnn_module_kernel": 5, "conv_norm": "layer_norm"}
TABLE = conformer(**ENCODER).component_table()
MODULES = ("feed_forward_macaron", "self_attn", "conv_module", "feed_forward")


def half() -> Subnet:
    """Everything of block 1, the convolution and half of the heads of block 2, nothing of block 3."""
    keys = {key for key in TABLE.by_key if key.layer == 0}
    keys |= {Key(1, "conv_module", 0), Key(1, "self_attn", 0), Key(1, "self_attn", 1)}
    return Subnet("half", frozenset(keys))


def test_shares_are_those_of_the_set() -> None:
    (choice,) = choices(TABLE, {FULL: TABLE.full(), "half": half()})
    assert choice.modules == MODULES
    np.testing.assert_allclose(choice.kept, [[1, 1, 1, 1], [0, 0.5, 1, 0], [0, 0, 0, 0]])
    row = share_table([choice]).markdown().splitlines()[2]
    assert row == "|half|33%|50%|67%|33%|100%|38%|0%|"


def test_the_text_names_what_is_kept_and_dropped() -> None:
    text = describe(choices(TABLE, {"half": half()})[0])
    assert "most of convolution (67%)" in text
    assert "drops block 3 whole" in text and "keeps block 1 whole" in text
    assert "it drops FFN 1 of block 2; FFN 2 of block 2" in text
    full = describe(Choice("all", MODULES, np.ones((2, 4))))
    assert "keeps blocks 1 and 2 whole" in full and "drops" not in full


def test_the_page_links_pictures_of_cards_and_history(tmp_path) -> None:
    experiment = tmp_path / "exp"
    (experiment / "subnets" / "half").mkdir(parents=True)
    (experiment / "config.yaml").write_text(yaml.safe_dump({"encoder": "todm_conformer", "encoder_conf": ENCODER}))
    write_card(experiment / "subnets" / "half", "half", kept=half().to_json())
    weights = {"half": [0.5] * len(TABLE.components)}
    lines = [json.dumps({"step": step, "weights": weights}) for step in (0, 10, 10, 20)]
    (experiment / "selection.jsonl").write_text("\n".join(lines) + "\n")
    page = selection_section(experiment, tmp_path / "plots", tmp_path)
    for name in ("exp_components.png", "exp_selection.png"):
        assert f"](plots/{name})" in page
        assert (tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG")
    assert list(read_history(experiment / "selection.jsonl")) == [0, 10, 20]


def test_weights_that_are_no_numbers_stay_so(tmp_path) -> None:
    (tmp_path / "selection.jsonl").write_text(to_json({"step": 0, "weights": {"half": [0.5, float("nan")]}}) + "\n")
    (weights,) = read_history(tmp_path / "selection.jsonl").values()
    assert weights["half"] == pytest.approx([0.5, float("nan")], nan_ok=True)


def test_missing_and_damaged_files_end_in_one_line(tmp_path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"encoder": "todm_conformer", "encoder_conf": ENCODER}))
    with pytest.raises(UserError, match="extract the sizes first"):
        selection_section(tmp_path, tmp_path, tmp_path)
    (tmp_path / "selection.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(UserError, match=r"selection.jsonl:1"):
        read_history(tmp_path / "selection.jsonl")
