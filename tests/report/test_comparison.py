"""The table of methods x sizes, from files alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from espnet_todm.errors import UserError
from espnet_todm.report import comparison
from espnet_todm.report.comparison import comparison_table, read_training
from espnet_todm.report.plan import Method
from espnet_todm.util.files import read_json, write_json

LINE = "[host] (trainer:394) INFO: "
LOG = f"""{LINE}1epoch results: [train] loss=3.1, time=1 hour, 6 minutes and 14.5 seconds, total_count=521, [valid] a=1
{LINE}2epoch results: [train] loss=2.1, time=59.5 seconds, total_count=900, [valid] a=1
{LINE}2epoch results: [train] loss=2.1, time=45.5 seconds, total_count=1042, [valid] a=1
"""


def test_a_log_gives_updates_and_hours_and_an_epoch_done_twice_counts_once(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text(LOG)
    training = read_training(tmp_path / "train.log")
    assert training.updates == 1042
    assert training.hours == pytest.approx((3600 + 6 * 60 + 14.5 + 45.5) / 3600)


@pytest.mark.parametrize("text", [None, "nothing here\n"])
def test_a_log_without_epochs_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "train.log").write_text(text)
    with pytest.raises(UserError, match=r"train.log: "):
        read_training(tmp_path / "train.log")


def test_rows_hold_what_was_measured_and_blanks_elsewhere(scored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "model_steps", lambda experiment, updates: 1.5 * updates)
    (scored / "train.log").write_text(LOG)
    card = scored / "subnets" / "small" / "card.json"
    content = read_json(card)
    content["cost"]["encoder_shares"] = {"params": 0.305, "flops": 0.4}
    write_json(card, content)
    method = Method("ours", {"encoder_conf": {"sizes": {"small": 0.31}}}, ("full", "small", "uncosted"))
    header, _, full, small, uncosted = comparison_table([(method, scored)]).splitlines()
    assert header.startswith("|size|method|WER dev [95%]|WER test_clean [95%]|params (M)|")
    assert full.startswith("|full|ours|") and full.endswith("|4.000|0.200||1042|1563|1.12|")
    assert small.startswith("|small|ours|") and small.endswith("|1.250|0.050|-0.50|1042|1563|1.12|")
    assert uncosted.endswith("|||||1042|1563|1.12|")
