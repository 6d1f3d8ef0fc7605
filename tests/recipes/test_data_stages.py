"""Stages 1 to 5 of the recipes as a user runs them, on a few seconds of noise; and what users do wrong."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from espnet2.train.dataset import ESPnetDataset

from espnet_todm.util.files import read_table
from tests.recipes.conftest import ROOT, Recipe
from tests.tiny_corpus import audio_path, truncate, write_split

pytestmark = pytest.mark.recipe
REAL = ROOT.parent / "shared" / "data" / "librispeech_mini"


@pytest.fixture
def corpus(tmp_path: Path) -> list[object]:
    """The options that name a tiny corpus."""
    for split in ("train-tiny", "dev-tiny", "test-tiny"):
        write_split(tmp_path, split)
    return [
        "--corpus", tmp_path, "--train_set", "train-tiny", "--valid_set", "dev-tiny", "--test_sets", "test-tiny",
        "--token_size", 26, "--nj", 1,
    ]  # fmt: skip


def test_stages_1_to_5_and_again(librispeech: Recipe, corpus: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    out = librispeech.good(*corpus, "--stop_stage", 5)
    assert out.count("done in") == 5
    monkeypatch.chdir(librispeech.folder)
    texts = read_table("dump/fbank/train-tiny_sp/text")
    assert len(texts) == 18 and len(read_table("dump/fbank/test-tiny/text")) == 6
    dataset = ESPnetDataset([("dump/fbank/train-tiny_sp/feats.scp", "speech", "kaldi_ark")])
    frames = read_table("dump/fbank/train-tiny_sp/utt2num_frames")
    assert all(dataset[name][1]["speech"].shape == (int(frames[name]), 80) for name in texts)
    tokens = Path("data/token_list/unigram_26/tokens.txt").read_text().splitlines()
    assert (tokens[0], tokens[1], tokens[-1], len(tokens)) == ("<blank>", "<unk>", "<sos/eos>", 26)
    again = librispeech.good(*corpus, "--stop_stage", 5)
    assert again.count("complete already with the same options, skipped") == 3 + 1 + 3 + 3 + 1


def test_options_of_stages_1_to_5(librispeech: Recipe, corpus: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    librispeech.good(
        *corpus, "--stop_stage", 5, "--train-set=both=train-tiny+dev-tiny", "--limit", 4, "--speed_factors", "none",
        "--feats_type", "raw", "--token_type", "char",
    )  # fmt: skip
    monkeypatch.chdir(librispeech.folder)
    assert len(read_table("dump/raw/both/wav.scp")) == 4
    assert not Path("data/both_sp").exists()
    assert "<space>" in Path("data/token_list/char/tokens.txt").read_text().split()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--corpsu", "x"], "option --corpsu is unknown; there are: stage stop_stage train_set"),
        (["--stage"], "option --stage needs a value"),
        (["--stage", "--nj", "2"], "option --stage needs a value"),
        (["3"], "3 is no option"),
        (["--stage", "3a"], "--stage: '3a', but a number from 1 to 15 is expected"),
        (["--stop_stage", "16"], "--stop_stage: '16', but a number from 1 to 15"),
        (["--stage", "5", "--stop_stage", "4"], "--stage: 5 lies behind --stop_stage 4"),
        (["--test_sets", ""], "--test_sets: empty"),
        (["--train_set", "a b"], "--train_set: 'a b', but one split is expected; join folders as name=folder+folder"),
        (["--download", "yes"], "--download: 'yes', but true or false is expected"),
        (["--corpus", "/nonexistent"], "corpus: '/nonexistent' is no folder"),
        (["--stage", "2"], "data/train-clean-100: not there or not complete; run the stage before this one first"),
    ],
)
def test_wrong_options_end_in_one_line(librispeech: Recipe, options: list[str], message: str) -> None:
    assert message in librispeech.error(*options)


def test_help_lists_every_option_with_its_default(librispeech: Recipe) -> None:
    out = librispeech.good("--help")
    for part in ("--stage ", "--train_set ", "[train-clean-100]", "--launcher ", "[0.9 1.1]", "10  statistics"):
        assert part in out


def test_a_corpus_without_transcripts(librispeech: Recipe, corpus: list[object], tmp_path: Path) -> None:
    kept = {path: path.read_text() for path in (tmp_path / "LibriSpeech" / "dev-tiny").rglob("*.trans.txt")}
    for path in kept:
        path.unlink()
    assert "dev-tiny: no transcripts in it" in librispeech.error(*corpus, "--stop_stage", 1)
    assert not (librispeech.folder / "data" / "dev-tiny").exists()
    for path, text in kept.items():
        path.write_text(text)
    librispeech.good(*corpus, "--stop_stage", 1)


def test_an_empty_test_set(librispeech: Recipe, corpus: list[object], tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "LibriSpeech" / "test-tiny")
    (tmp_path / "LibriSpeech" / "test-tiny").mkdir()
    assert "test-tiny: no audio in it" in librispeech.error(*corpus, "--stop_stage", 1)


def test_a_truncated_flac(librispeech: Recipe, corpus: list[object], tmp_path: Path) -> None:
    name = next(iter(write_split(tmp_path, "spare")))
    truncated = audio_path(tmp_path, "spare", name)
    truncate(truncated)
    options = [*corpus, "--test_sets", "test-tiny spare", "--stop_stage", 4]
    message = librispeech.error(*options)
    assert (
        f"spare: 1 of 6 utterances (16.7%) have faults, but max_quarantine_share is 2.0%: 1 unreadable; first: {name}"
        in message
    )
    assert not (librispeech.folder / "dump" / "fbank" / "spare").exists()
    out = librispeech.good(*options, "--stage", 4, "--max_quarantine_share", 0.2)
    assert "spare IS NOT WHOLE" in out and "5 of 6 utterances" in out
    quarantine = (librispeech.folder / "dump/fbank/spare/quarantine.tsv").read_text()
    assert f"{name}\tunreadable\tError : flac decoder lost sync." in quarantine


def test_a_vocabulary_too_large_for_the_text(librispeech: Recipe, corpus: list[object]) -> None:
    message = librispeech.error(*corpus, "--token_size", 9000, "--stop_stage", 5, "--speed_factors", "none")
    assert "token_size: 9000 is too large for this text; unigram allows at most" in message


def test_stage_3_killed_in_the_middle_is_repaired(librispeech: Recipe, tmp_path: Path) -> None:
    write_split(tmp_path, "many", speakers=4, utterances=25)
    write_split(tmp_path, "few")
    librispeech.good(
        "--corpus", tmp_path, "--train_set", "many", "--valid_set", "few", "--test_sets", "few", "--stop_stage", 1
    )  # fmt: skip
    command = [
        sys.executable, "-m", "espnet_todm.bin.compute_features", "--splits", "many", "--shard", "1", "--jobs", "2",
        "--output",
    ]  # fmt: skip
    how = {"cwd": librispeech.folder, "env": librispeech.environment}
    running = subprocess.Popen([*command, "killed"], **how)
    folder = librispeech.folder / "killed" / "org" / "many"
    deadline = time.monotonic() + 60
    while not list((folder / "shards").glob("measures.*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    done = len(list((folder / "shards").glob("measures.*")))
    assert 0 < done < 100 and not (folder / ".completed").exists()
    second = subprocess.run([*command, "killed"], **how, capture_output=True, text=True, check=True)
    assert "of 100 shards are there" in second.stderr
    subprocess.run([*command, "whole"], **how, capture_output=True, check=True)
    assert not list((librispeech.folder / "killed").rglob("*.part"))
    for path in (librispeech.folder / "whole").rglob("*.ark"):
        twin = librispeech.folder / "killed" / path.relative_to(librispeech.folder / "whole")
        assert twin.read_bytes() == path.read_bytes()


def test_stage_3_through_submitit(librispeech: Recipe, corpus: list[object]) -> None:
    librispeech.good(*corpus, "--stop_stage", 2)
    librispeech.good(*corpus, "--stage", 3, "--stop_stage", 4, "--launcher", "submitit-local", "--nj", 2)
    assert len(read_table(librispeech.folder / "dump/fbank/train-tiny_sp/feats.scp")) == 18
    assert "'pbs'" in librispeech.error(*corpus, "--stage", 3, "--stop_stage", 3, "--launcher", "pbs")
    assert "--jobs: invalid int value: 'two'" in librispeech.error(*corpus, "--stage", 3, "--nj", "two")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("recipe", sorted(path.parent.name for path in (ROOT / "egs").glob("*/run.sh")))
def test_shell_scripts_are_clean(recipe: str) -> None:
    command = ["shellcheck", "-x", "run.sh", "path.sh", "cmd.sh"]  # -x follows what they source
    found = subprocess.run(command, cwd=ROOT / "egs" / recipe, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


@pytest.mark.real_speech
@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real speech at {REAL}")
def test_real_speech(librispeech: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    out = librispeech.good(
        "--corpus", REAL, "--train_set", "train-mini", "--valid_set", "dev-mini", "--test_sets", "test-mini",
        "--limit", 12, "--stop_stage", 5, "--token_size", 60, "--nj", 1, "--token_text", REAL / "lm_text.txt.gz",
    )  # fmt: skip
    assert "NOT WHOLE" not in out
    monkeypatch.chdir(librispeech.folder)
    assert len(read_table("dump/fbank/test-mini/feats.scp")) == 12
    assert len(read_table("dump/fbank/train-mini_sp/feats.scp")) == 36
    assert len(set(read_table("dump/fbank/test-mini/utt2spk").values())) == 4
