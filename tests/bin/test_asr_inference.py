"""ESPnet's inference under our name: its options and ours in one help, and a package that is missing in one line."""

from __future__ import annotations

import sys

import pytest

from espnet_todm.bin.asr_inference import main
from espnet_todm.errors import UserError


def test_help_shows_our_option_beside_espnets(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    told = capsys.readouterr().out
    assert "--subnet SUBNET" in told and "--asr_train_config" in told and "Example: python -m espnet_todm.bin" in told


def test_a_tag_needs_the_model_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espnet_model_zoo", None)
    with pytest.raises(
        UserError, match=r"espnet-model-zoo is not installed .*; pip install 'espnet_todm\[zoo\]'"
    ) as error:
        main(["--model_tag", "someone/some_model", "--output_dir", "out"])
    assert "\n" not in str(error.value)
