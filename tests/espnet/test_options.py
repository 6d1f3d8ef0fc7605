"""A user's slips at the command line and in the config: one clear last line, status 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import espnet_todm
from espnet_todm.bin.asr_train import main
from espnet_todm.errors import UserError
from espnet_todm.espnet.options import check_part, checkpoint_errors, parse_training
from espnet_todm.util.checks import accepted_keys
from tests.tiny_model import trained_by
from tests.tiny_training import CONFIG, arguments, python, write_config, write_data

espnet_todm.register()
ENCODER = CONFIG["encoder_conf"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder": "todm_confomer"}, ["encoder: 'todm_confomer'", "todm_conformer"]),
        ({"encoder_conf": {**ENCODER, "ffn_chunk": 2}}, ["encoder_conf", "ffn_chunk"]),
        ({"encoder_conf": {**ENCODER, "subnet": "tiny"}}, ["subnet: 'tiny'", "full, small"]),
        ({"encoder_conf": {**ENCODER, "linear_units": "32"}}, ["encoder_conf.linear_units", "'32'", "write 32"]),
        ({"encoder_conf": {**ENCODER, "ffn_chunks": 5}}, ["32", "5 chunks"]),
        ({"encoder_conf": {**ENCODER, "normalize_before": False}}, ["normalize_before", "False", "True"]),
        (
            {"scheduler": "one_cycle_linear", "scheduler_conf": {"total_steps": 100, "up_share": 0.4, "end": 4e-5}},
            ["piecewiselinearwarmuplr", "[1, 41, 86, 101, 1001]", "[4e-06, 0.0004, 4e-05, 1e-08, 1e-08]"],
        ),
        ({"model": "tdom"}, ["model: 'tdom'", "todm"]),
        ({"model_conf": {"ctc_wieght": 1}}, ["model_conf", "ctc_wieght", "ctc_weight"]),
        ({"subnet_trainer": "dk"}, ["subnet_trainer: 'dk'", "kd, single"]),
        ({"subnet_trainer_conf": {"kd_wieght": 1}}, ["subnet_trainer_conf", "kd_wieght", "kd_weight"]),
        ({"subnet_trainer_conf": {"search_space": {"ffn": 2}}}, ["search_space.ffn", "2", "[low, high]"]),
        ({"optim": "adma"}, ["optim: 'adma'", "scaledadam"]),
        ({"optim_conf": {"lrr": 1}}, ["optim_conf", "lrr", "lr"]),
        ({"optim_conf": {"lr": "1e-3"}}, ["optim_conf.lr", "'1e-3'", "write 0.001"]),
        ({"scheduler": "edn"}, ["scheduler: 'edn'", "eden2"]),
        ({"specaug_conf": {"apply": 1}}, ["specaug_conf", "apply", "apply_time_mask"]),
        ({"encodr": "todm_conformer"}, ["encodr"]),
    ],
)
def test_a_wrong_config_ends_in_one_clear_line(
    data: Path, tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    config = write_config(tmp_path / "config.yaml", **changes)
    with pytest.raises(UserError) as error:
        main(arguments(data, tmp_path / "exp", "--config", str(config)))
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_espnets_own_options_stay_possible(data: Path, tmp_path: Path) -> None:
    changes = {"encoder_conf": {**ENCODER, "normalize_before": True}, "scheduler": None, "scheduler_conf": {}}
    config = write_config(tmp_path / "config.yaml", **changes)
    options = parse_training(arguments(data, tmp_path / "exp", "--config", str(config)))
    assert options.encoder == "todm_conformer" and options.scheduler is None


def test_print_config_needs_nothing_and_has_the_defaults_of_the_chosen_classes(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("encoder: todm_conformer\nencoder_conf: {output_size: 16}\n")
    (tmp_path / "top.yaml").write_text("base: base.yaml\nscheduler: warmuplr\noptim: scaledadam\n")
    for more in (["--config", str(tmp_path / "top.yaml")], ["--encoder", "todm_conformer", "--scheduler", "warmuplr"]):
        done = python(["-m", "espnet_todm.bin.asr_train", "--print_config", "--optim_conf", "lr=0.5", *more])
        assert done.returncode == 0, done.stderr
        printed = yaml.safe_load(done.stdout)
        assert printed["encoder_conf"]["linear_units"] == 2048 and printed["scheduler_conf"]["warmup_steps"] == 25000
        assert (printed["optim_conf"]["lr"] == 0.5 and "betas" in printed["optim_conf"]) or more[0] != "--config"
        assert printed["encoder_conf"]["output_size"] == (16 if more[0] == "--config" else 256)
        assert printed["output_dir"] is None and "print_config" not in printed


def test_required_options_are_named(data: Path) -> None:
    with pytest.raises(UserError, match="--output_dir is required"):
        parse_training(["--token_list", str(data / "tokens.txt")])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--token_list", "/nowhere/tokens.txt"], ["no such file", "/nowhere/tokens.txt"]),
        (["--encoder", "foo"], ["--encoder", "foo", "todm_conformer"]),
    ],
)
def test_the_last_line_of_the_command_is_the_error(
    data: Path, tmp_path: Path, more: list[str], words: list[str]
) -> None:
    done = python(["-m", "espnet_todm.bin.asr_train", *arguments(data, tmp_path / "exp", *more)])
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("error: "), done.stderr
    assert all(word in last for word in words), last
    assert "Traceback" not in done.stderr


def test_a_checkpoint_of_other_dimensions_is_refused(data: Path, tmp_path: Path) -> None:
    torch.save({"ctc.ctc_lo.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    with pytest.raises(
        UserError, match=r"another model than the config: size mismatch for ctc\.ctc_lo\.weight"
    ) as error:
        main(arguments(data, tmp_path / "exp", "--init_param", str(tmp_path / "other.pth")))
    assert "\n" not in str(error.value) and "--init_param" not in str(error.value)


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ({}, {"kd_start": {}}, ["Missing key(s)", "subnet_trainer.distillation.seen"]),
        ({"kd_start": {}}, {}, ["Unexpected key(s)", "subnet_trainer.distillation.seen"]),
        ({"kd_weight": 0}, {"kd_weight": 0, "views": {"where": "subsampled"}}, ["subnet_trainer.views.start.seen"]),
    ],
)
def test_a_run_that_is_resumed_with_another_trainer_state_is_told_what_to_do(
    before: dict[str, Any], now: dict[str, Any], words: list[str]
) -> None:
    state = trained_by(**before).state_dict()
    with pytest.raises(UserError) as error, checkpoint_errors():
        trained_by(**now).load_state_dict(state)
    assert all(word in str(error.value) for word in [*words, "latest.pth:::subnet_trainer", "another --output_dir"])
    assert "\n" not in str(error.value)


def test_check_part() -> None:
    class Part:
        def __init__(self, width: int, rate: float = 0.1) -> None: ...

    class Anything:
        def __init__(self, **options: Any) -> None: ...

    classes = {"part": Part, "anything": Anything, "nothing": None}
    assert accepted_keys(Part) == ["width", "rate"] and accepted_keys(Anything) is None
    for value, conf in (("part", {"width": 3}), ("PART", None), ("anything", {"x": "1"}), ("nothing", {}), (None, {})):
        check_part("frontend", value, conf, classes)
    check_part("frontend", "part", {"width": "16"}, classes)  # elsewhere text may be meant
    with pytest.raises(UserError, match="frontend_conf: 3 must be a mapping"):
        check_part("frontend", "part", 3, classes)
    with pytest.raises(UserError, match="encoder: None is unknown"):
        check_part("encoder", None, {}, classes, optional=False)
    for text, number in (("-2.50e2", "-250"), ("1e-16", r"1\.0e-16"), ("25e-9", r"2\.5e-08")):
        with pytest.raises(UserError, match=rf"optim_conf\.lr: '{text}' .* write {number}$"):
            check_part("optim", "anything", {"lr": text}, classes)
