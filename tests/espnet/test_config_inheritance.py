"""Configurations laid over their bases: what is merged, what is replaced, and what a user does wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

import espnet_todm
from espnet_todm.errors import UserError
from espnet_todm.espnet.config_inheritance import merged, read_config
from espnet_todm.espnet.options import parse_training

REQUIRED = ["--output_dir", "x", "--token_list", "x"]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_mappings_are_merged_and_the_rest_is_replaced() -> None:
    base = {"a": {"x": 1, "y": {"z": 2}}, "b": [1, 2], "c": {"d": 1}}
    assert merged(base, {"a": {"y": {"w": 3}}, "b": [3], "c": None, "e": 4}) == {
        "a": {"x": 1, "y": {"z": 2, "w": 3}}, "b": [3], "c": None, "e": 4,
    }  # fmt: skip
    assert base["a"] == {"x": 1, "y": {"z": 2}}


def test_options_go_with_the_part_they_are_of_but_a_supernet_keeps_those_of_its_stock_encoder() -> None:
    base = {"encoder": "conformer", "encoder_conf": {"num_blocks": 6}, "optim": "adam", "optim_conf": {"lr": 1}}
    changed = merged(base, {"encoder": "todm_conformer", "encoder_conf": {"ffn_chunks": 8}, "optim": "scaledadam"})
    assert changed == {
        "encoder": "todm_conformer", "encoder_conf": {"num_blocks": 6, "ffn_chunks": 8}, "optim": "scaledadam",
    }  # fmt: skip
    assert merged(base, {"encoder": "todm_mh_ssm"})["encoder"] == "todm_mh_ssm"
    assert "encoder_conf" not in merged(base, {"encoder": "todm_mh_ssm"})


def test_a_base_is_found_beside_the_file_that_names_it(tmp_path: Path) -> None:
    write(tmp_path / "common/base.yaml", "optim_conf: {lr: 0.1, eps: 0.2}\n")
    write(tmp_path / "middle.yaml", "base: common/base.yaml\noptim_conf: {lr: 0.3}\nseed: 1\n")
    top = write(tmp_path / "conf/top.yaml", "base: ../middle.yaml\nseed: 2\n")
    assert read_config(top) == {"optim_conf": {"lr": 0.3, "eps": 0.2}, "seed": 2}


def test_bases_of_a_list_are_laid_over_one_another_in_order(tmp_path: Path) -> None:
    write(tmp_path / "optim/adam.yaml", "base: ../seed.yaml\noptim: adam\noptim_conf: {lr: 0.1}\n")
    write(tmp_path / "seed.yaml", "seed: 1\nspecaug_conf: {}\n")
    write(tmp_path / "train.yaml", "base: seed.yaml\noptim_conf: {eps: 0.2}\nspecaug_conf: {a: 1}\nmax_epoch: 2\n")
    top = write(tmp_path / "top.yaml", "base: [optim/adam.yaml, train.yaml]\noptim_conf: {lr: 0.3}\n")
    assert read_config(top) == {
        "seed": 1, "optim": "adam", "optim_conf": {"lr": 0.3, "eps": 0.2}, "specaug_conf": {"a": 1}, "max_epoch": 2,
    }  # fmt: skip


A = "optim: adam\noptim_conf: {lr: 1, betas: {low: 1}}\nscheduler_conf: {steps: [0, 1]}\n"
B = "optim: sgd\noptim_conf: {lr: 2, momentum: 3}\n"


@pytest.mark.parametrize(
    ("other", "own", "message"),
    [
        (B, "", "a.yaml has optim: 'adam', b.yaml has 'sgd'; state optim in this file"),
        ("optim_conf: {lr: 2}\n", "optim: adam\n", "a.yaml has optim_conf.lr: 1, b.yaml has 2; state optim_conf.lr"),
        ("optim_conf: {betas: 2}\n", "optim_conf: {lr: 3}\n", "optim_conf.betas: {'low': 1}, b.yaml has 2; state"),
        ("scheduler_conf: {steps: [0]}\n", "", r"a.yaml has scheduler_conf.steps: [0, 1], b.yaml has [0]; state"),
    ],
)
def test_two_bases_that_contradict_each_other(tmp_path: Path, other: str, own: str, message: str) -> None:
    write(tmp_path / "a.yaml", A)
    write(tmp_path / "b.yaml", other)
    for order in ("[a.yaml, b.yaml]", "[seed.yaml, a.yaml, b.yaml]"):
        write(tmp_path / "seed.yaml", "seed: 1\n")
        with pytest.raises(UserError) as error:
            read_config(write(tmp_path / "top.yaml", f"base: {order}\n{own}"))
        assert f"{tmp_path / 'top.yaml'}: base: " in str(error.value) and message in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("order", ["a.yaml, b.yaml", "b.yaml, a.yaml"])
@pytest.mark.parametrize(
    ("own", "optim"),
    [
        ("optim: adam\n", {"lr": 1, "betas": {"low": 1}}),
        ("optim: sgd\n", {"lr": 2, "momentum": 3}),
        ("optim: adam\noptim_conf: {lr: 3}\n", {"lr": 3, "betas": {"low": 1}}),
        ("optim: adamw\noptim_conf: {lr: 4}\n", {"lr": 4}),
        ("optim: adam\noptim_conf:\n", None),
    ],
)
def test_what_the_file_states_itself_decides_in_any_order(tmp_path: Path, order: str, own: str, optim: object) -> None:
    write(tmp_path / "a.yaml", A)
    write(tmp_path / "b.yaml", B)
    config = read_config(write(tmp_path / "top.yaml", f"base: [{order}]\n{own}"))
    assert config["optim_conf"] == optim and config["scheduler_conf"] == {"steps": [0, 1]}


def test_the_training_command_reads_bases(tmp_path: Path) -> None:
    espnet_todm.register()
    write(tmp_path / "base.yaml", "encoder: todm_conformer\nencoder_conf: {output_size: 16}\nmax_epoch: 3\nseed: 3\n")
    top = write(tmp_path / "top.yaml", "base: base.yaml\nencoder_conf: {num_blocks: 2}\nmax_epoch: 5\n")
    for arguments in (["--config", str(top)], [f"--config={top}"]):
        options = parse_training([*arguments, *REQUIRED, "--seed", "7", "--encoder_conf", "linear_units=8"])
        assert (options.max_epoch, options.seed, options.config) == (5, 7, str(top))
        assert options.encoder_conf == {"output_size": 16, "num_blocks": 2, "linear_units": 8}
    write(tmp_path / "base.yaml", "encoder: todm_conformer\nmax_epochs: 3\n")
    with pytest.raises(UserError, match=r"unrecognized arguments: max_epochs \(from .*top\.yaml\)"):
        parse_training(["--config", str(top), *REQUIRED])


def test_configurations_of_other_editors(tmp_path: Path) -> None:
    (tmp_path / "top.yaml").write_bytes("# modèle\r\nencoder: todm_conformer\r\n".encode("utf-8-sig"))
    assert read_config(tmp_path / "top.yaml") == {"encoder": "todm_conformer"}
    (tmp_path / "top.yaml").write_text("a: 1\n# modèle\n", encoding="latin-1")
    with pytest.raises(UserError, match=r"top\.yaml:2: not UTF-8 text"):
        read_config(tmp_path / "top.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: top.yaml\n", r"top\.yaml: base: leads back to this file"),
        ("base: other.yaml\n", r"other\.yaml: no such file \(named as base by top\.yaml\)"),
        (
            "base: [good.yaml, circle.yaml]\n",
            r"top\.yaml: base: leads back to this file \(named as base by circle\.yaml\)",
        ),
        ("base: ../common/conf/todm.yaml\n", r"no such file .*; it is now conf/train/todm\.yaml of the checkout"),
        ("base: conf/../../none.yaml\n", r"none\.yaml: no such file \(named as base by top\.yaml\)"),
        ("base: [good.yaml, list.yaml]\n", r"list\.yaml: must be a mapping of options \(named as base by top\.yaml\)"),
        ("base: [good.yaml, 3]\n", r"base: \['good\.yaml', 3\] must be the path of a YAML file, or a list of paths"),
        ("base: []\n", r"base: \[\] must be the path of a YAML file, or a list of paths"),
        ("base: {a: 1}\n", r"base: \{'a': 1\} must be the path of a YAML file, or a list of paths"),
        ("- 1\n", r"top\.yaml: must be a mapping of options"),
        ("a: [1\n", r"top\.yaml: is no YAML: "),
    ],
)
def test_a_wrong_file_ends_in_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / "good.yaml", "seed: 1\n")
    write(tmp_path / "circle.yaml", "base: [good.yaml, top.yaml]\n")
    write(tmp_path / "list.yaml", "- 1\n")
    with pytest.raises(UserError, match=message) as error:
        read_config(write(tmp_path / "top.yaml", text))
    assert "\n" not in str(error.value)
