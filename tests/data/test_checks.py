"""Stage 4: reasons, limits, evaluation sets, and the share that stops the stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from espnet_todm.data.audio import Measure
from espnet_todm.data.checks import Limits, filter_split, judge
from espnet_todm.data.corpus import prepare_split
from espnet_todm.data.features import FeatureOptions, compute_features
from espnet_todm.data.tables import read_problems
from espnet_todm.errors import UserError
from espnet_todm.espnet.encoder_input import Shortest
from espnet_todm.util.files import read_table
from tests.tiny_corpus import RATE, audio_path, noise, truncate, write_split


def measure(**changes: Any) -> Measure:
    good = {"seconds": 5.0, "sampling_rate": RATE, "channels": 1, "peak": 0.5, "where": "feats.ark:7", "frames": 500}
    return Measure("utt", **{**good, **changes})


@pytest.mark.parametrize(
    ("changes", "reason", "also_in_evaluation"),
    [
        ({"error": "flac decoder lost sync", "where": None}, "unreadable", True),
        ({"sampling_rate": 8000, "where": None}, "wrong-rate", True),
        ({"channels": 2, "where": None}, "not-mono", True),
        ({"peak": 0.0}, "empty", True),
        ({"seconds": 0.01, "where": None}, "empty", True),
        ({"peak": 21000.0, "clipped": 0.9}, "over-scale", True),  # 16-bit numbers as floats
        ({"clipped": 0.02}, "clipped", False),
        ({"seconds": 0.09}, "too-short", False),
        ({"seconds": 30.01}, "too-long", False),
    ],
)
def test_reasons(changes: dict[str, Any], reason: str, also_in_evaluation: bool) -> None:
    problem = judge(measure(**changes), Limits())
    assert problem is not None and problem.reason == reason and problem.detail
    assert (judge(measure(**changes), Limits(), evaluation=True) is not None) == also_in_evaluation


def test_a_little_above_full_scale_is_heard_as_it_is() -> None:
    assert judge(measure(peak=1.2, clipped=0.001), Limits()) is None


@given(st.floats(0.0, 60.0), st.floats(0.0, 30.0), st.floats(0.01, 30.0))
def test_lengths_pass_exactly_between_the_limits(seconds: float, least: float, more: float) -> None:
    limits = Limits(min_seconds=least, max_seconds=least + more)
    passes = judge(measure(seconds=seconds), limits) is None
    assert passes == (least <= seconds <= least + more)
    assert judge(measure(seconds=seconds), limits, evaluation=True) is None


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("min_seconds, max_seconds", {"min_seconds": 3.0, "max_seconds": 3.0}),
        ("min_seconds", {"min_seconds": -1.0}),
        ("max_clipped", {"max_clipped": 1.5}),
        ("max_quarantine_share", {"max_quarantine_share": 2.0}),
        ("max_quarantine_share", {"max_quarantine_share": float("nan")}),
    ],
)
def test_impossible_limits_are_refused(key: str, options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=key):
        Limits(**options)


class Recipe:
    """Split a with 10 utterances: one truncated, one clipped, one without words; the others are good."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.truncated, self.clipped, self.wordless, *self.good = write_split(root, "a", utterances=5)
        transcript = sorted((root / "LibriSpeech" / "a").rglob("*.trans.txt"))[0]
        lines = [line for line in transcript.read_text().splitlines() if self.wordless not in line]
        transcript.write_text("\n".join(lines))
        truncate(audio_path(root, "a", self.truncated))
        soundfile.write(audio_path(root, "a", self.clipped), np.sign(noise(1.0)) * 0.9999, RATE)
        self.compute()

    def compute(self, feats_type: str = "fbank") -> None:
        prepare_split(self.root / "LibriSpeech", "a", ["a"], "data")
        compute_features({"data/a": f"dump/{feats_type}/org/a"}, FeatureOptions(feats_type))

    def filter(self, feats_type: str = "fbank", evaluation: bool = False, **limits: float) -> Path:
        features = Path("dump", feats_type)
        return filter_split("data/a", features / "org" / "a", features / "a", Limits(**limits), evaluation)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    (tmp_path / "recipe").mkdir()
    monkeypatch.chdir(tmp_path / "recipe")
    return Recipe(tmp_path)


def test_bad_utterances_are_listed_and_the_tables_agree(recipe: Recipe) -> None:
    folder = recipe.filter(max_quarantine_share=0.3)
    found = {one.utterance: one.reason for one in read_problems(folder / "quarantine.tsv")}
    assert found == {recipe.truncated: "unreadable", recipe.clipped: "clipped", recipe.wordless: "no-transcript"}
    for table in ("feats.scp", "text", "utt2spk", "utt2dur", "utt2num_frames"):
        assert list(read_table(folder / table)) == recipe.good
    assert " ".join(read_table(folder / "spk2utt").values()).split() == recipe.good


def test_raw_audio_gives_wav_scp(recipe: Recipe) -> None:
    recipe.compute("raw")
    folder = recipe.filter("raw", max_quarantine_share=0.3)
    assert list(read_table(folder / "wav.scp")) == list(read_table(folder / "utt2num_samples")) == recipe.good


def test_too_many_faults_stop_the_stage_in_one_line(recipe: Recipe) -> None:
    with pytest.raises(UserError) as caught:
        recipe.filter(max_quarantine_share=0.2)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("a: 3 of 10 utterances (30.0%)", "max_quarantine_share is 20.0%", "1 unreadable", recipe.wordless):
        assert part in message
    assert not Path("dump/fbank/a").exists()


def test_lengths_do_not_count_as_faults(recipe: Recipe) -> None:
    seconds = {name: float(value) for name, value in read_table("data/a/utt2dur").items()}
    longest = max(seconds[name] for name in recipe.good)
    folder = recipe.filter(max_quarantine_share=0.3, max_seconds=longest - 0.01)
    reasons = [one.reason for one in read_problems(folder / "quarantine.tsv")]
    assert reasons.count("too-long") == sum(seconds[name] > longest - 0.01 for name in recipe.good) > 0


def test_evaluation_sets_lose_only_the_undecodable_and_say_so(recipe: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    folder = recipe.filter(evaluation=True, max_quarantine_share=0.2, max_seconds=0.55)
    assert list(read_table(folder / "feats.scp")) == sorted([recipe.clipped, *recipe.good])
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "a IS NOT WHOLE: 1 no-transcript, 1 unreadable; error rates will be over 8 of 10 utterances" in warnings[0]


@pytest.mark.parametrize("feats_type", ["fbank", "raw"])
def test_training_sets_lose_what_is_too_short_for_the_encoder(recipe: Recipe, feats_type: str) -> None:
    if feats_type == "raw":
        recipe.compute("raw")
    shortest = min(recipe.good, key=lambda name: float(read_table("data/a/utt2dur")[name]))
    seconds = float(read_table("data/a/utt2dur")[shortest])
    needed = Shortest(round(seconds * 100) + 1, round(seconds * RATE) + 1)
    how = {"data": "data/a", "features": f"dump/{feats_type}/org/a", "output": f"dump/{feats_type}/a"}
    folder = filter_split(**how, limits=Limits(max_quarantine_share=0.3), needed=needed)
    details = {
        one.utterance: one.detail for one in read_problems(folder / "quarantine.tsv") if one.reason == "too-short"
    }
    assert "but the encoder needs" in details[shortest]
    assert shortest not in read_table(folder / "text")
    folder = filter_split(**how, limits=Limits(max_quarantine_share=0.3), evaluation=True, needed=needed)
    assert shortest in read_table(folder / "text")


def test_nothing_left_is_an_error(recipe: Recipe) -> None:
    with pytest.raises(UserError, match="a: no utterance of 10 passed: 7 too-long"):
        recipe.filter(max_quarantine_share=0.3, max_seconds=0.2)


def test_other_limits_redo_without_the_audio(recipe: Recipe, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    recipe.filter(max_quarantine_share=0.3)
    for path in (recipe.root / "LibriSpeech").rglob("*.flac"):
        path.unlink()
    recipe.filter(max_quarantine_share=0.3)
    assert "skipped" in caplog.text
    assert len(read_table(recipe.filter(max_quarantine_share=0.3, max_clipped=1.0) / "text")) == 8


def test_stage_4_needs_stage_3(recipe: Recipe) -> None:
    with pytest.raises(UserError, match="dump/raw/org/a: not there or not complete"):
        recipe.filter("raw")
