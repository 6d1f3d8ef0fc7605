"""Checkpoints of plain ESPnet are extracted like a supernet's full size; what no supernet can be made of is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from espnet_todm.card import read_card
from espnet_todm.deploy.extract import extract, load_supernet, pick_subnets
from espnet_todm.deploy.parity.gate import find_origin
from espnet_todm.deploy.stock import as_supernet
from espnet_todm.errors import UserError
from tests.tiny_experiment import write_experiment


@pytest.fixture(scope="module", params=["todm_conformer", "todm_e_branchformer", "todm_transformer"])
def stock(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.yaml and model.pth of a model with ESPnet's own encoder, as plain ESPnet leaves them: no name of ours."""
    folder = tmp_path_factory.mktemp("stock")
    experiment = write_experiment(folder / "supernet", request.param)
    supernet = load_supernet(experiment / "config.yaml", experiment / "model.pth")
    extract(supernet, supernet.encoder.find_subnet("full"), folder / "stock")
    (folder / "stock/card.json").unlink()
    assert "todm" not in (folder / "stock/config.yaml").read_text()
    return folder / "stock"


def test_the_full_size_of_a_stock_checkpoint_is_the_checkpoint(stock: Path, tmp_path: Path) -> None:
    supernet = load_supernet(stock / "config.yaml", stock / "model.pth")
    (full,) = pick_subnets(supernet)
    card = extract(supernet, full, tmp_path / "full")  # which compares ESPnet's encoder with the supernet's
    before, after = (torch.load(folder / "model.pth") for folder in (stock, tmp_path / "full"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert card["cost"]["share_of_params"] == 1 and card["supernet"]["max_abs_difference"] < 1e-5
    assert card["encoder"] == yaml.safe_load((stock / "config.yaml").read_text())["encoder"]
    origin = find_origin(tmp_path / "full")
    assert origin is not None and origin.checkpoint == stock / "model.pth"
    assert read_card(tmp_path / "full/card.json") == card


def test_other_configurations_stay_as_they_are() -> None:
    for config in ({"encoder": "todm_conformer", "model": "todm"}, {"encoder": "conformer", "model": "maskctc"}):
        assert as_supernet(config) == config
    assert as_supernet({"encoder": "conformer", "model": None})["model"] == "todm"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"encoder": "rnn", "encoder_conf": {}},
            r"encoder: rnn is no supernet; needed: model: todm, or a stock encoder",
        ),
        ({"encoder_conf": {"normalize_before": False}}, r"normalize_before: False is not possible in a supernet"),
    ],
)
def test_what_is_no_supernet_ends_in_one_line(tmp_path: Path, changes: dict, message: str) -> None:
    config = {
        "encoder": "conformer", "model": "espnet", "model_conf": {"ctc_weight": 1.0}, "input_size": 20, "ctc_conf": {},
        "token_list": ["<blank>", "A", "<sos/eos>"], "frontend": None, "specaug": None, "normalize": None, "decoder": None,
        "init": None, **changes,
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    torch.save({}, tmp_path / "model.pth")
    with pytest.raises(UserError, match=message):
        load_supernet(tmp_path / "config.yaml", tmp_path / "model.pth")
