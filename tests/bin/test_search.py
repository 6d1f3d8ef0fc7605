"""bin.search from a trained supernet to cards that bin.extract takes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from espnet_todm.bin.extract import main as extract_main
from espnet_todm.bin.search import main
from espnet_todm.components import Subnet
from espnet_todm.errors import UserError
from espnet_todm.search.evaluate import Evaluator
from espnet_todm.util.files import read_json, write_table
from tests.tiny_experiment import write_experiment


@pytest.fixture(scope="module")
def exp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment with dump/dev beside its files."""
    folder = write_experiment(tmp_path_factory.mktemp("search"), conv_norm="layer_norm")
    data = folder / "dump" / "dev"
    data.mkdir(parents=True)
    (data / "feats.scp").write_text((folder / "feats.scp").read_text())
    write_table(data / "text", {"utt0": "A B", "utt1": "CAD BEE", "utt2": "GABE"})
    return folder


def arguments(exp: Path, output: Path, *more: str) -> list[str]:
    given = ["--experiment", str(exp), "--checkpoint", str(exp / "model.pth"), "--data", str(exp / "dump")]
    given += ["--set", "dev", "--population", "4", "--objectives", "cer", "params", "--output", str(output)]
    return [*given, *more]


def test_a_search_writes_cards_table_picture_and_trials(exp: Path, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("optuna")
    output = tmp_path / "out"
    main(arguments(exp, output, "--trials", "16", "--test_sets", "dev"))
    text = (output / "SEARCH.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out and "|random search|16|" in text and "|uniform scaling|" in text
    assert (output / "cer_params.png").stat().st_size > 10_000
    stored = read_json(output / "search.json")
    assert [len(stored["methods"][name]) for name in ("search", "random search")] == [16, 16]
    assert {trial["proposed_by"] for trial in stored["methods"]["random search"]} == {"random"}
    assert all(set(trial["costs"]) == {"params", "flops"} for trial in stored["methods"]["search"])
    cards = sorted(path.stem for path in (output / "cards").iterdir())
    assert cards == sorted(stored["pareto"]) and cards

    by_name = {trial["name"]: trial for trial in stored["methods"]["search"]}
    given = ["--config", str(exp / "config.yaml"), "--checkpoint", str(exp / "model.pth")]
    files = [str(output / "cards" / f"{name}.json") for name in cards]
    extract_main([*given, "--output", str(tmp_path / "small"), "--sizes", *files])
    for name in cards:
        card = read_json(tmp_path / "small" / name / "card.json")
        assert card["cost"]["params"] == by_name[name]["costs"]["params"] and card["kept"] == by_name[name]["kept"]


def test_a_stopped_search_leaves_what_it_has_and_goes_on(exp: Path, tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("optuna")
    scores, calls = Evaluator.scores, []

    def stopping(self: Evaluator, subnet: Subnet, score: str) -> dict[str, float]:
        calls.append(subnet.components)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return scores(self, subnet, score)

    monkeypatch.setattr(Evaluator, "scores", stopping)
    with pytest.raises(KeyboardInterrupt):
        main(arguments(exp, tmp_path, "--trials", "8", "--baseline", "0"))
    stored = read_json(tmp_path / "search.json")
    assert len(stored["methods"]["search"]) == 5 and list((tmp_path / "cards").iterdir())
    main(arguments(exp, tmp_path, "--trials", "8", "--baseline", "0"))
    stored = read_json(tmp_path / "search.json")
    assert len(stored["methods"]["search"]) == 8 and "random search" not in stored["methods"]
    assert len(calls) == len(set(calls)) + 1  # only the one that was stopped is scored again
    with pytest.raises(UserError, match="has a search with transcripts: "):
        main(arguments(exp, tmp_path, "--trials", "8", "--baseline", "0", "--utterances", "2"))


def test_stopped_before_the_first_score_there_is_nothing_to_write(exp: Path, tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("optuna")

    def stop(self: Evaluator, subnet: Subnet, score: str) -> dict[str, float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Evaluator, "scores", stop)
    with pytest.raises(KeyboardInterrupt):
        main(arguments(exp, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["study.db"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--budget", "params=10"], "budget: params=10 is infeasible; subnets of this supernet cost"),
        (["--budget", "1M"], "'1M' must be criterion=amount"),
        (["--budget", "latency=0.1"], "'latency' has not been measured"),
        (["--objectives", "wer", "loss"], "objectives: wer loss: needed are one score"),
        (["--objectives", "params"], "objectives: params: needed are one score"),
        (["--objectives", "wer", "speed"], "criterion: 'speed' is unknown"),
        (["--compare_at", "10"], "budget: params=10 is infeasible"),
        (["--trials", "0"], "trials: 0 is not allowed"),
        (["--test_sets", "none"], "none/text: no such file"),
        (["--storage", "nonsense://"], "storage: nonsense:// cannot be opened"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(exp: Path, tmp_path: Path, more: list[str], words: str) -> None:
    pytest.importorskip("optuna")
    with pytest.raises(UserError, match=words):
        main(arguments(exp, tmp_path / "out", *more))
    assert "--storage" in more or not (tmp_path / "out").exists()


def test_without_optuna_the_extra_is_named(exp: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"optuna is not installed .*pip install 'espnet_todm\[search\]'"):
        main(arguments(exp, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
