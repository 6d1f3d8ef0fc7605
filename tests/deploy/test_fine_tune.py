"""A size that is trained on by itself starts from its own weights and becomes a size like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from espnet_todm.bin.fine_tune import main
from espnet_todm.card import read_card
from espnet_todm.deploy.extract import extract, load_supernet
from espnet_todm.deploy.fine_tune import (
    DATA_OPTIONS,
    ENTRY,
    FineTuning,
    check_output,
    fine_tune,
    training_config,
)
from espnet_todm.errors import UserError
from espnet_todm.espnet.load import load_extracted
from espnet_todm.util.files import write_json
from tests.tiny_experiment import TRANSDUCER, write_experiment
from tests.tiny_model import TOKENS
from tests.tiny_training import write_data


def data_options(data: Path) -> dict[str, Any]:
    """What a training's config.yaml says of its data."""
    tables = [[f"{data}/feats.scp", "speech", "kaldi_ark"], [f"{data}/text", "text", "text"]]
    shapes = [f"{data}/speech_shape", f"{data}/text_shape"]
    return dict(zip(DATA_OPTIONS, (tables, tables, shapes, shapes)))


def extracted(folder: Path, **changes: Any) -> Path:
    """The size small of a supernet whose config names data."""
    data = write_data(folder / "data")
    run = {"batch_type": "unsorted", "batch_size": 4, "num_workers": 0, "use_matplotlib": False, "seed": 3}
    config = {
        **data_options(data),
        **run,
        "token_list": list(TOKENS),
        "use_preprocessor": True,
        "max_epoch": 9,
        **changes,
    }
    supernet = load_supernet(write_experiment(folder / "exp", changes=config) / "config.yaml", folder / "exp/model.pth")
    extract(supernet, supernet.encoder.find_subnet("small"), folder / "exp/subnets/small")
    return folder / "exp/subnets/small"


def loss(folder: Path, data: Path) -> float:
    """Of all utterances of tiny_training's data."""
    from kaldiio import load_scp

    model, _ = load_extracted(folder)
    texts = dict(line.split() for line in (data / "text").read_text().splitlines())
    total = 0.0
    with torch.no_grad():
        for name, features in load_scp(str(data / "feats.scp")).items():
            labels = torch.tensor([[TOKENS.index(letter) for letter in texts[name]]])
            speech = torch.tensor(features)[None]
            total += float(model(speech, torch.tensor([speech.shape[1]]), labels, torch.tensor([labels.shape[1]]))[0])
    return total


def test_a_stock_size_gets_better_on_its_data_and_stays_a_size(tmp_path: Path) -> None:
    small = extracted(tmp_path)
    main([str(small), "--steps", "30", "--lr", "0.01", "--processes", "1", "--training_args", "--log_interval 10"])
    tuned = small.with_name("small_ft")
    assert {path.name for path in tuned.iterdir()} == {path.name for path in small.iterdir()}
    assert loss(tuned, tmp_path / "data") < 0.8 * loss(small, tmp_path / "data")
    before, after = read_card(small / "card.json"), read_card(tuned / "card.json")
    assert after["name"] == "small_ft" and after["encoder"] == "conformer"
    assert all(after[key] == before[key] for key in ("cost", "kept", "vocabulary"))
    assert after["fine_tuned"]["from"] == {"name": "small", "sha256": before["weights"]["sha256"]}
    training = after["fine_tuned"]["training"]
    assert training["num_iters_per_epoch"] == 30 and training["optim"] == "adamw" and training["seed"] == 3
    assert training["optim_conf"]["lr"] == 0.01
    assert training["model_conf"] == {"ctc_weight": 1.0}  # ESPnet's own model: float32
    ran = yaml.safe_load((tmp_path / "exp/fine_tune/small_ft/config.yaml").read_text())
    # As the supernet's slice was trained: ESPnet's own form cannot say that half of the units have half of the dropout.
    assert ran["encoder"] == "todm_conformer" and ran["encoder_conf"]["linear_units"] == 32
    assert {block["ffn"] for block in ran["encoder_conf"]["blocks"]} == {16}
    assert yaml.safe_load((tuned / "config.yaml").read_text())["encoder"] == "conformer"
    check_output(tuned, ENTRY)  # an earlier result may be replaced


def test_a_transducer_starts_from_the_extracted_weights_in_the_supernets_precision(tmp_path: Path) -> None:
    model_conf = {**TRANSDUCER["model_conf"], "autocast": "bfloat16"}
    small = extracted(tmp_path, **{**TRANSDUCER, "model_conf": model_conf})
    assert load_extracted(small)[0].autocast.dtype is torch.bfloat16
    options = FineTuning(steps=2, lr=1e-7, processes=1)
    card = fine_tune(small, tmp_path / "tuned", tmp_path / "work", options)
    before, after = load_file(small / "model.safetensors"), load_file(tmp_path / "tuned/model.safetensors")
    assert before.keys() == after.keys()
    for name, value in before.items():
        if "running_" not in name and "num_batches" not in name:  # batch norm sees the data whatever the rate
            torch.testing.assert_close(after[name], value, atol=1e-5, rtol=0)
    assert any(not torch.equal(after[name], value) for name, value in before.items())
    assert card["fine_tuned"]["training"]["model_conf"] == {"ctc_weight": 0.3, "autocast": "bfloat16"}
    assert card["supernet"]["checkpoint"] and "max_abs_difference" not in card["supernet"]
    load_extracted(tmp_path / "tuned")


@given(steps=st.integers(2, 10_000), lr=st.floats(1e-6, 1.0), accum=st.integers(1, 8))
def test_the_schedule_rises_and_ends_at_zero(steps: int, lr: float, accum: int) -> None:
    conf = training_config({"encoder": "conformer", "accum_grad": accum, "max_epoch": 7}, FineTuning(steps, lr))
    bounds = conf["scheduler_conf"]["warmup_steps_list"]
    assert bounds == sorted(set(bounds)) and bounds[0] == 0 and bounds[-1] == steps
    assert conf["scheduler_conf"]["warmup_lr_list"] == [0.0, lr, 0.0]
    assert conf["max_epoch"] * conf["num_iters_per_epoch"] == steps * accum


def test_the_model_and_the_data_are_taken_over_and_the_run_is_not() -> None:
    config = {"encoder": "conformer", "model": "espnet", "frontend": None, "specaug": "specaug", "dist_world_size": 2}
    config["freeze_param"] = ["encoder.encoders.11"]  # of the supernet
    conf = training_config({**config, "optim": "scaledadam", "required": ["x"], "batch_bins": 5}, FineTuning())
    assert conf["encoder"] == "conformer" and conf["specaug"] == "specaug" and conf["batch_bins"] == 5
    assert not {"dist_world_size", "required", "frontend", "freeze_param"} & conf.keys() and conf["optim"] == "adamw"


def test_int8_trains_with_its_rounding_errors() -> None:
    config = {"encoder": "conformer", "fake_quantization": "int8"}  # of a size that was trained so before
    assert training_config(config, FineTuning(int8=True))["fake_quantization"] == "int8"
    assert training_config(config, FineTuning())["fake_quantization"] is None


def test_what_cannot_be_done_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    small = extracted(tmp_path)
    (tmp_path / "data/text").rename(tmp_path / "data/gone")
    with pytest.raises(UserError, match=r"config\.yaml: train_data_path_and_name_and_type names .*text, which is not"):
        fine_tune(small, tmp_path / "tuned", tmp_path / "work", FineTuning())
    (tmp_path / "mine").mkdir()
    for output in (tmp_path / "mine", small):
        with pytest.raises(UserError, match="exists and is no earlier result"):
            fine_tune(small, output, tmp_path / "work", FineTuning())
    card = read_card(small / "card.json")
    write_json(small / "card.json", {**card, "weights": {**card["weights"], "sha256": "0" * 64}})
    with pytest.raises(UserError, match="its SHA-256 is"):
        fine_tune(small, tmp_path / "tuned", tmp_path / "work", FineTuning())
    assert not (tmp_path / "tuned").exists() and not (tmp_path / "work").exists()


def test_a_training_that_fails_leaves_no_result(tmp_path: Path) -> None:
    small = extracted(tmp_path)
    config = yaml.safe_load((small / "config.yaml").read_text())
    config["num_workers"] = "many"
    (small / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="training ended with exit status"):
        fine_tune(small, tmp_path / "tuned", tmp_path / "work", FineTuning(steps=2, processes=1))
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize(
    ("options", "words"), [({"steps": 1}, "steps: 1"), ({"lr": 0.0}, "lr: 0"), ({"processes": 0}, "processes: 0")]
)
def test_wrong_options_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        FineTuning(**options)
