"""What of a checkpoint is refused before anybody runs the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from espnet_todm.deploy.extract import extract, load_supernet
from espnet_todm.errors import UserError
from espnet_todm.espnet.load import load_checkpoint, load_extracted


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(experiment: Path, tmp_path: Path, value: float) -> None:
    state = torch.load(experiment / "model.pth", weights_only=True)
    name = next(name for name in state if name.endswith("running_mean"))
    state[name][0] = value
    torch.save(state, tmp_path / "3epoch.pth")
    for load in (load_supernet, load_checkpoint):
        with pytest.raises(UserError, match=rf"3epoch\.pth: NaN or Inf in {name}; .*earlier checkpoint") as error:
            load(experiment / "config.yaml", tmp_path / "3epoch.pth")
        assert "\n" not in str(error.value)


def test_a_size_whose_config_lost_its_tokens_is_one_line(experiment: Path, tmp_path: Path) -> None:
    supernet = load_supernet(experiment / "config.yaml", experiment / "model.pth")
    extract(supernet, supernet.encoder.find_subnet("small"), tmp_path / "small")
    config = tmp_path / "small/config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("token_list:", "x:"), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"config\.yaml: token_list: its number of tokens is not the one in .*card\.json"
    ):
        load_extracted(tmp_path / "small")
