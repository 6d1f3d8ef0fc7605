"""Stages 1 to 5 of the TED-LIUM recipe as a user runs them, on made sph and stm of noise; and what users do wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from espnet2.train.dataset import ESPnetDataset

from espnet_todm.util.files import read_table
from tests import sph_corpus, tiny_corpus
from tests.recipes.conftest import ROOT, Recipe

pytestmark = pytest.mark.recipe
TALK = "Speaker0_test"


@pytest.fixture
def corpus(tmp_path: Path) -> list[object]:
    """The options that name a tiny corpus of 6 segments a split."""
    for split in sph_corpus.SPLITS:
        sph_corpus.write_split(tmp_path, split)
    return ["--corpus", tmp_path, "--token_size", 26, "--nj", 1]


def test_stages_1_to_5_and_again(tedlium2: Recipe, corpus: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = ["--speed_factors", "0.9 1.1"]
    out = tedlium2.good(*corpus, *speeds, "--stop_stage", 5)
    assert out.count("done in") == 5
    for words in ("dev has 6 sentences", "466 and 14671", "test has 6 sentences", "1155 and 27500"):
        assert words in out
    monkeypatch.chdir(tedlium2.folder)
    texts = read_table("dump/fbank/train_sp/text")
    assert len(texts) == 18 and len(read_table("dump/fbank/test/text")) == 6
    assert not [word for text in texts.values() for word in text.split() if word[0] in "'<("]
    dataset = ESPnetDataset([("dump/fbank/train_sp/feats.scp", "speech", "kaldi_ark")])
    frames = read_table("dump/fbank/train_sp/utt2num_frames")
    seconds = read_table("data/train_sp/utt2dur")
    for name in texts:
        assert dataset[name][1]["speech"].shape == (int(frames[name]), 80)
        assert abs(int(frames[name]) - 100 * float(seconds[name])) <= 2  # the segment's, not the talk's
    again = tedlium2.good(*corpus, *speeds, "--stop_stage", 5)
    assert again.count("complete already with the same options, skipped") == 3 + 1 + 3 + 3 + 1


def test_raw_segments_and_phonemes(
    tedlium2: Recipe, corpus: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lexicon = tmp_path / "letters.dic"
    out = tedlium2.good(
        *corpus, "--feats_type", "raw", "--token_type", "phone", "--lexicon", lexicon, "--limit", 4, "--stop_stage", 5
    )
    assert "sentences" not in out  # a limit is a trial; it is not compared with the official sizes
    monkeypatch.chdir(tedlium2.folder)
    assert not Path("data/train_sp").exists()
    spelled, words = read_table("data/token_list/phone/dev/text"), read_table("dump/raw/dev/text")
    assert len(words) == 4
    for name, text in words.items():
        letters = " ".join(" ".join(word.replace("'", "").upper()) + "#" for word in text.split())
        assert spelled[name] == letters
    seconds = read_table("data/dev/utt2dur")
    dataset = ESPnetDataset([("dump/raw/dev/wav.scp", "speech", "sound")])
    assert all(len(dataset[name][1]["speech"]) == round(float(seconds[name]) * 16000) for name in words)


def harm(top: Path, how: str) -> None:
    sph, stm = top / "sph" / f"{TALK}.sph", top / "stm" / f"{TALK}.stm"
    if how == "shorten":
        sph_corpus.write_shorten(sph)
    elif how == "missing":
        top.rename(top.with_name("other"))
    elif how == "line":
        stm.write_text(stm.read_text() + f"{TALK} 1\n")
    elif how == "beyond":
        stm.write_text(stm.read_text() + sph_corpus.stm_line(TALK, 0.0, 99.0, "hello"))
    else:
        (sph if how == "sph" else stm).unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "shorten",
            f"{TALK}.sph: compressed with shorten, which cannot be read here; convert it with `sph2pipe -f wav",
        ),
        ("missing", "test: no such folder in"),
        ("line", f"{TALK}.stm:8: 2 fields, but an stm line has talk, channel, speaker"),
        ("beyond", f"{TALK}.stm:8: segment 0 to 99 s, but"),
        ("sph", f"no audio {TALK}.sph in"),
        ("stm", f"no transcript {TALK}.stm in"),
    ],
)
def test_a_harmed_corpus_ends_in_one_line(
    tedlium2: Recipe, corpus: list[object], tmp_path: Path, how: str, message: str
) -> None:
    harm(tmp_path / "TEDLIUM_release2" / "test", how)
    assert message in tedlium2.error(*corpus, "--stop_stage", 1)
    assert not (tedlium2.folder / "data" / "test").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--corpus", ""], "corpus: '' is no folder; give the one that holds TEDLIUM_release2/"),
        (["--unknown", "drop"], "unknown: 'drop' is unknown; allowed: keep, remove"),
        (["--max_overlap", "much"], "--max_overlap: invalid float value: 'much'"),
        (["--train_set", "training", "--corpus"], "training: no such folder in"),
    ],
)
def test_wrong_options_end_in_one_line(tedlium2: Recipe, tmp_path: Path, options: list[str], message: str) -> None:
    top = tmp_path / "TEDLIUM_release2"
    top.mkdir()
    given = [*options, tmp_path] if options[-1] == "--corpus" else ["--corpus", tmp_path, *options]
    assert message in tedlium2.error(*given)


def make(output: Path, *options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.sph_corpus", str(output), *map(str, options)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_made_corpora_say_so(tmp_path: Path) -> None:
    for split in ("a", "b", "c"):
        tiny_corpus.write_split(tmp_path, split)
    options = ["--librispeech", tmp_path, "--splits", "a", "b", "c", "--limit", 4]
    made = make(tmp_path / "made", *options)
    notice = "Made sph + stm for tests: at most 4 utterances of each of a, b, c in LibriSpeech. This is not TED-LIUM.\n"
    assert made.stdout == (tmp_path / "made" / "NOTICE").read_text() == notice, made.stderr
    talks = sorted((tmp_path / "made" / "TEDLIUM_release2" / "dev" / "sph").glob("*.sph"))
    assert len(talks) == 2  # one of each speaker
    assert all(path.read_bytes().startswith(b"NIST_1A") for path in talks)
    assert "noise. This is not TED-LIUM." in make(tmp_path / "noise").stdout
    assert make(tmp_path / "none", "--librispeech", tmp_path).stderr.startswith("error: train-mini: no such folder in")
