"""The tutorial: its script from a synthesised corpus to the last table, and what its two configurations have in common."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from espnet_todm.espnet.config_inheritance import read_config
from espnet_todm.util.files import read_json, read_table
from tests.conftest import disturb
from tests.recipes.conftest import ROOT, Recipe

CONF = ROOT / "egs/mini/conf"
CORPUS = "--train_minutes 0.4 --dev_minutes 0.15 --test_minutes 0.15 --speaker_seconds 4"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The recipe's folder after the whole script, and what it printed."""
    for package in ("espeakng_loader", "onnxruntime", "sherpa_onnx"):
        pytest.importorskip(package)
    recipe = Recipe(tmp_path_factory.mktemp("tutorial"), "mini")
    environment = {**recipe.environment, "PROCESSES": "1", "TRAINING_ARGS": "--max_epoch 1"}
    command = ["./tutorial.sh", "--nj", "1", "--corpus_args", CORPUS]
    ended = subprocess.run(command, cwd=recipe.folder, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return recipe.folder, ended.stdout


@pytest.mark.recipe
def test_the_script_ends_with_a_table_of_the_stock_model_and_the_sizes(done: tuple[Path, str]) -> None:
    *_, table = done[1].split("== 6. All in one table\n")
    assert [row.split("|")[1:3] for row in table.splitlines()[2:]] == [
        ["stock", "full"], ["tutorial", "full"], ["tutorial", "medium"], ["tutorial", "small"], ["tutorial", "tiny"],
    ]  # fmt: skip
    assert all(cell for row in table.splitlines() for cell in row.split("|")[1:-1])  # everything was measured


@pytest.mark.recipe
def test_plain_espnet_trained_the_stock_model_and_the_supernet_took_its_weights(done: tuple[Path, str]) -> None:
    exp = done[0] / "exp"
    assert "todm" not in (exp / "stock/config.yaml").read_text()
    assert "Loading pretrained params from exp/stock/valid.cer_ctc.best.pth" in (exp / "tutorial/train.log").read_text()
    parity = read_json(exp / "stock/subnets/full/onnx/parity.json")
    slices = [step for step in parity["steps"] if step["against"] == "supernet slice"]
    assert len(slices) == 3 and all(step["holds"] and step["difference"] < 1e-5 for step in slices)


@pytest.mark.recipe
def test_even_sizes_are_stock_models_that_sherpa_and_plain_espnet_read(done: tuple[Path, str]) -> None:
    folder, printed = done
    names = list(read_table(folder / "data/test/wav.scp"))[:3]
    for size in ("full", "medium", "small", "tiny"):
        assert (
            yaml.safe_load((folder / f"exp/tutorial/subnets/{size}/config.yaml").read_text())["encoder"] == "conformer"
        )
    for reader in ("sherpa-onnx", "ESPnet"):
        assert [line.split()[1] for line in printed.splitlines() if line.startswith(f"{reader} ")] == names


def test_the_supernet_changes_no_option_of_the_stock_encoder() -> None:
    stock, ours = read_config(CONF / "stock_conformer.yaml"), read_config(CONF / "train_tutorial.yaml")
    assert stock["encoder_conf"].items() <= ours["encoder_conf"].items()
    assert "todm" not in {stock["encoder"], stock.get("model")} and "scaled" not in stock["optim"]


def test_before_training_the_full_size_computes_what_the_stock_model_computes() -> None:
    """Weights go over by name, as with init_param."""
    from espnet_todm.espnet.options import parse_training
    from espnet_todm.espnet.registry import register

    register()
    from espnet2.tasks.asr import ASRTask

    models = []
    for name in ("stock_conformer", "train_tutorial"):
        given = ["--config", str(CONF / f"{name}.yaml"), "--output_dir", "-", "--token_list", "-", "--input_size", "80"]
        options = vars(parse_training(given))
        models.append(ASRTask.build_model(argparse.Namespace(**{**options, "token_list": [*"_abc"]})).eval())
    stock, supernet = models
    disturb(stock.encoder)
    supernet.load_state_dict({**supernet.state_dict(), **stock.state_dict()})
    speech, lengths = torch.randn(1, 120, 80, generator=torch.Generator().manual_seed(0)), torch.tensor([120])
    with torch.no_grad():
        outputs = [model.ctc.log_softmax(model.encode(speech.clone(), lengths)[0]) for model in models]
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_script_is_clean() -> None:
    command = ["shellcheck", "-x", "tutorial.sh"]
    found = subprocess.run(command, cwd=ROOT / "egs/mini", capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
