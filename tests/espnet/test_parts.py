"""Values of parts' options that their classes cannot take end in one line that names the part."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

import espnet_todm
from espnet_todm.bench.dry_run import dry_run
from espnet_todm.errors import UserError
from espnet_todm.espnet.options import parse_training
from espnet_todm.espnet.parts import part_errors
from tests.tiny_training import CONFIG, write_config

espnet_todm.register()
ENCODER, ATTENTION = CONFIG["encoder_conf"], {"decoder": "transformer", "model_conf": {"ctc_weight": 0.3}}
NO_MASK = {f"apply_{kind}": False for kind in ("time_warp", "freq_mask", "time_mask")}
JOINER = {"decoder": "transducer", "model_conf": {"ctc_weight": 0.0}}


def encoder(**changes: Any) -> dict[str, Any]:
    return {"encoder_conf": {**ENCODER, **changes}}


def tried(path: Path, changes: dict[str, Any], input_size: int = 20) -> str:
    """What a dry run of this configuration refuses."""
    config = write_config(path / "config.yaml", **changes)
    size = ["--input_size", str(input_size)] if input_size else []
    with pytest.raises(UserError) as error:
        dry_run(parse_training(["--config", str(config), "--token_list", "-", "--output_dir", "-", *size]), 11, 2, 1.0)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (encoder(num_blocks="two"), "encoder_conf.num_blocks: 'two' must be a whole number"),
        (encoder(num_blocks=2.5), "encoder_conf.num_blocks: 2.5 must be a whole number"),
        (encoder(num_blocks=None), "encoder_conf.num_blocks: None must be a whole number"),
        (encoder(dropout_rate="high"), "encoder_conf.dropout_rate: 'high' must be a number"),
        (encoder(macaron_style="yes"), "encoder_conf.macaron_style: 'yes' must be true or false"),
        (encoder(sizes=["small"]), "sizes: ['small'] must be a mapping from names to sizes"),
        ({"model_conf": {"ctc_weight": 2}}, "ctc_weight: 2 is not allowed, it must be a finite number >= 0 and <= 1"),
        (
            {**JOINER, "model_conf": {"ctc_weight": -1}},
            "ctc_weight: -1 is not allowed, it must be a finite number >= 0",
        ),
    ],
)
def test_the_option_is_named_where_its_class_says_what_it_is(tmp_path: Path, changes: Any, line: str) -> None:
    assert line in tried(tmp_path, changes)


@pytest.mark.parametrize(
    ("changes", "part", "reason"),
    [
        (encoder(dropout_rate=1.5), "encoder: 'todm_conformer'", "between 0 and 1, but got 1.5"),
        ({**ATTENTION, "decoder_conf": {"num_blocks": "x"}}, "decoder: 'transformer'", "num_blocks"),
        ({**ATTENTION, "decoder_conf": {"attention_heads": 5}}, "decoder: 'transformer'", "n_feat % n_head == 0"),
        ({**JOINER, "joint_net_conf": {"joint_size": 3}}, "joint_net_conf:", "joint_size"),
        ({"specaug_conf": NO_MASK}, "specaug: 'specaug'", "should be applied"),
        ({"optim_conf": {"lr": -1}}, "optim: 'adam'", "Invalid learning rate: -1"),
        ({"scheduler_conf": {"warmup_steps": 0}}, "scheduler: 'warmuplr'", "negative power"),
    ],
)
def test_else_the_part_and_its_own_words(tmp_path: Path, changes: Any, part: str, reason: str) -> None:
    line = tried(tmp_path, changes)
    assert line.startswith(f"{part} does not work with its options: ") and reason in line


def test_a_part_that_cannot_run_is_named(tmp_path: Path) -> None:
    changes = {"preencoder": "linear", "preencoder_conf": {"input_size": 1024, "output_size": 20}}
    line = tried(tmp_path, changes)
    assert line.startswith("preencoder: 'linear' does not work with its options: mat1 and mat2 shapes")


def test_a_package_that_is_not_installed_is_named() -> None:
    from espnet2.asr.specaug.specaug import SpecAug

    class Wanting(SpecAug):
        def __init__(self) -> None:
            import nowhere_to_be_found  # noqa: F401

    from espnet2.tasks.asr import specaug_choices

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(specaug_choices.classes, "wanting", Wanting)
        with (
            pytest.raises(
                UserError, match="specaug: 'wanting' needs the package nowhere_to_be_found, which is not inst"
            ),
            part_errors(Namespace(specaug="wanting")),
        ):
            Wanting()


def test_an_options_key_without_value_has_none(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    write_config(config, decoder_conf=None)
    config.write_text(f"{config.read_text()}decoder_conf:\n")
    parsed = parse_training(["--config", str(config), "--token_list", "-", "--output_dir", "-"])
    assert parsed.decoder_conf == {}


def test_other_exceptions_pass() -> None:
    with pytest.raises(KeyError), part_errors(Namespace(encoder="todm_conformer")):
        raise KeyError("of nobody")


def test_a_size_may_be_named_by_a_number(tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", **encoder(sizes={7: 0.7}, conv_norm="batch_norm"))
    options = ["--config", str(config), "--token_list", "-", "--output_dir", "-", "--input_size", "20"]
    assert list(dry_run(parse_training(options), 11, 2, 1.0).costs) == ["full", "7"]


def test_a_transducer_is_not_said_to_lose_its_decoder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = write_config(tmp_path / "config.yaml", **JOINER)
    options = ["--config", str(config), "--token_list", "-", "--output_dir", "-", "--input_size", "20"]
    dry_run(parse_training(options), 11, 2, 1.0)
    assert "decoder" not in caplog.text
