"""What a stock user's run needs: best models by ESPnet's names, averages, schedules and early stopping on validation values,
and ESPnet's joint CTC/attention search on what comes out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import espnet_todm
from espnet_todm.bin.asr_train import main
from espnet_todm.deploy.extract import extract, load_supernet
from espnet_todm.errors import UserError
from tests.tiny_training import CONFIG, arguments, write_config, write_data

espnet_todm.register()
ATTENTION: dict[str, Any] = {
    "decoder": "transformer",
    "decoder_conf": {"attention_heads": 2, "linear_units": 16, "num_blocks": 1},
    "model_conf": {"ctc_weight": 0.3, "lsm_weight": 0.1, "report_wer": True},
    "preencoder": "linear",
    "preencoder_conf": {"input_size": 20, "output_size": 18},
    "postencoder": "length_adaptor",
    "postencoder_conf": {"length_adaptor_n_layers": 1},
    "best_model_criterion": [["valid", "acc", "max"], ["train", "acc", "max"], ["valid", "wer", "min"]],
    "keep_nbest_models": 2,
    "scheduler": "reducelronplateau",
    "scheduler_conf": {"mode": "max", "factor": 0.5, "patience": 0, "threshold": 2.0, "threshold_mode": "abs"},
    "val_scheduler_criterion": ["valid", "acc"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def experiment(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CTC/attention with parts around the encoder, three epochs, and ESPnet's pictures of attention."""
    folder = tmp_path_factory.mktemp("run")
    config = write_config(folder / "train.yaml", **ATTENTION)
    more = ["--use_matplotlib", "true", "--num_att_plot", "1", "--config", str(config)]
    main(arguments(data, folder / "exp", *more))
    return folder / "exp"


def test_best_and_averaged_models_are_there_by_espnets_names(experiment: Path) -> None:
    for name in ("valid.acc", "train.acc", "valid.wer"):
        for kind in ("best", "ave", "ave_2best"):
            assert (experiment / f"{name}.{kind}.pth").resolve().is_file(), (name, kind)
    assert 2 <= len(list(experiment.glob("[0-9]epoch.pth"))) <= 3
    assert list(experiment.glob("att_ws/*/*.png"))
    assert (experiment / "images" / "acc.png").is_file()


def test_a_schedule_goes_by_a_validation_value(experiment: Path) -> None:
    """No accuracy is 2 better than another, so that the rate is halved after the second and the third epoch."""
    state = torch.load(experiment / "checkpoint.pth", weights_only=False)
    assert state["optimizers"][0]["param_groups"][0]["lr"] == pytest.approx(0.01 / 4)


def test_sizes_extracted_from_the_average_are_stock_models_that_espnet_searches(
    experiment: Path, tmp_path: Path
) -> None:
    from espnet2.bin.asr_inference import Speech2Text

    average, search = str(experiment / "valid.acc.ave.pth"), {"beam_size": 2, "ctc_weight": 0.3, "maxlenratio": 0.5}
    supernet = load_supernet(experiment / "config.yaml", average)
    speech = np.random.default_rng(1).standard_normal((80, 20)).astype(np.float32)
    whole = yaml.safe_load((experiment / "config.yaml").read_text(encoding="utf-8"))
    for size, subnet in supernet.encoder.sizes.items():
        extract(supernet, subnet, tmp_path / size)
        config = yaml.safe_load((tmp_path / size / "config.yaml").read_text(encoding="utf-8"))
        assert config["model"] == "espnet" and config["preencoder"] == "linear" and "distil" not in config["model_conf"]
        chosen = {**whole, "encoder_conf": {**whole["encoder_conf"], "subnet": size}}
        (tmp_path / "of_subnet.yaml").write_text(yaml.safe_dump(chosen), encoding="utf-8")
        pairs = (
            (tmp_path / size / "config.yaml", tmp_path / size / "model.pth"),
            (tmp_path / "of_subnet.yaml", average),
        )
        found = []
        for config_file, weights in pairs:
            speech2text = Speech2Text(str(config_file), str(weights), token_type="char", **search)
            found.append([(tokens, round(float(hyp.score), 3)) for _, tokens, _, hyp in speech2text(speech)])
        assert found[0] and found[0] == found[1]


def test_patience_stops_by_a_value_of_espnets_name(data: Path, tmp_path: Path, caplog: Any) -> None:
    changes = {"patience": 0, "early_stopping_criterion": ["valid", "cer_ctc", "max"], "max_epoch": 30}
    config = write_config(tmp_path / "train.yaml", **changes, best_model_criterion=[["valid", "cer_ctc", "min"]])
    with caplog.at_level(logging.INFO):
        main(arguments(data, tmp_path / "exp", "--config", str(config)))
    assert not (tmp_path / "exp" / "30epoch.pth").exists()
    assert "[Early stopping] valid.cer_ctc" in caplog.text


def test_a_criterion_that_nothing_reports_ends_before_the_first_epoch(data: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "train.yaml", best_model_criterion=[["valid", "acc", "max"]])
    with pytest.raises(UserError, match=r"best_model_criterion: \[valid, acc, max\]: no such value is reported"):
        main(arguments(data, tmp_path / "exp", "--config", str(config)))
    assert not list(tmp_path.glob("exp/*.pth"))


def test_the_dry_run_says_so_too(tmp_path: Path) -> None:
    from tests.bench.test_dry_run import run

    with pytest.raises(UserError, match=r"val_scheduler_criterion: \[valid, acc\]: no such value"):
        run(tmp_path, scheduler="reducelronplateau", scheduler_conf={}, val_scheduler_criterion=["valid", "acc"])
    assert CONFIG["model_conf"] == {"ctc_weight": 1.0}  # which has no accuracy
