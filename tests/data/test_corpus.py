"""Stages 1 and 2: data folders from a corpus, and speed-perturbed copies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from espnet2.fileio.read_text import read_2columns_text

from espnet_todm.data.corpus import perturb_speed, prepare_split
from espnet_todm.data.tables import read_cuts, read_problems
from espnet_todm.errors import UserError
from espnet_todm.util.files import read_table
from tests.tiny_corpus import RATE, audio_path, noise, truncate, write_split


def prepare(root: Path, split: str = "a", limit: int | None = None) -> Path:
    return prepare_split(root / "LibriSpeech", split, [split], root / "data", limit)


def test_data_folder_agrees_with_the_corpus(tmp_path: Path) -> None:
    names = write_split(tmp_path, "a", speakers=3, utterances=2)
    data = prepare(tmp_path)
    texts = dict(
        line.split(" ", 1)
        for path in (tmp_path / "LibriSpeech" / "a").rglob("*.trans.txt")
        for line in path.read_text().splitlines()
    )
    assert read_table(data / "text") == texts
    assert list(read_table(data / "wav.scp")) == sorted(names)
    speakers = read_table(data / "utt2spk")
    for speaker, mine in read_table(data / "spk2utt").items():
        assert mine.split() == [name for name in sorted(names) if speakers[name] == speaker]
    for name, path in read_table(data / "wav.scp").items():
        assert float(read_table(data / "utt2dur")[name]) == pytest.approx(soundfile.info(path).duration, abs=1e-4)
    cuts = list(read_cuts(data))
    assert [cut.id for cut in cuts] == sorted(names)
    np.testing.assert_array_equal(
        cuts[0].load_audio()[0], soundfile.read(audio_path(tmp_path, "a", cuts[0].id), dtype="float32")[0]
    )


def test_transcripts_of_any_editor_become_tables_that_espnet_reads_alike(tmp_path: Path) -> None:
    first, second, third = write_split(tmp_path, "a", speakers=1)
    rows = f"{first}\tone\u2028two\n{second} cafe\u0301\u00a0au\x85lait\r\n{third} a\rb\x0bc\x0cd\n"
    next((tmp_path / "LibriSpeech" / "a").rglob("*.trans.txt")).write_bytes(rows.encode("utf-8-sig"))
    data = prepare(tmp_path)
    expected = {first: "one two", second: "café au lait", third: "a b c d"}
    assert read_2columns_text(data / "text") == read_table(data / "text") == expected
    assert {cut.id: cut.supervisions[0].text for cut in read_cuts(data)} == expected
    assert not list(read_problems(data / "problems.tsv"))


def test_unusable_utterances_go_to_problems(tmp_path: Path) -> None:
    first, second, third, fourth, fifth = write_split(tmp_path, "a", speakers=1, utterances=5, suffix=".wav")
    audio_path(tmp_path, "a", first, ".wav").unlink()
    transcript = next((tmp_path / "LibriSpeech" / "a").rglob("*.trans.txt"))
    transcript.write_text("".join(line + "\n" for line in transcript.read_text().splitlines() if second not in line))
    audio_path(tmp_path, "a", third, ".wav").write_bytes(b"no audio at all")
    soundfile.write(audio_path(tmp_path, "a", fourth, ".wav"), np.zeros(0, dtype=np.int16), RATE)
    data = prepare(tmp_path)
    assert list(read_table(data / "text")) == [fifth]
    reasons = {one.utterance: one.reason for one in read_problems(data / "problems.tsv")}
    assert reasons == {first: "no-audio", second: "no-transcript", third: "unreadable", fourth: "empty"}
    details = {one.utterance: one.detail for one in read_problems(data / "problems.tsv")}
    assert "Format not recognised" in details[third]


@pytest.mark.parametrize("suffix", [".wav", ".ogg", ".WAV"])
def test_half_of_the_audio_with_all_of_the_words_is_a_problem(tmp_path: Path, suffix: str) -> None:
    whole, half = write_split(tmp_path, "a", speakers=1, utterances=2, suffix=".wav")
    for name in (whole, half):
        path = audio_path(tmp_path, "a", name, ".wav")
        soundfile.write(path.with_suffix(suffix), noise(1.5), RATE)
        if suffix != ".wav":
            path.unlink()
    truncate(audio_path(tmp_path, "a", half, suffix))
    data = prepare(tmp_path)
    assert list(read_table(data / "text")) == [whole]
    (problem,) = read_problems(data / "problems.tsv")
    assert (problem.utterance, problem.reason) == (half, "truncated") and "cut off: " in problem.detail


def test_a_speaker_s_name_is_one_word_in_the_tables(tmp_path: Path) -> None:
    names = write_split(tmp_path, "a", speakers=1)
    top = tmp_path / "LibriSpeech" / "a"
    next(top.iterdir()).rename(top / "Ada King")
    data = prepare(tmp_path)
    assert read_table(data / "utt2spk") == dict.fromkeys(names, "Ada_King")
    assert read_table(data / "spk2utt") == {"Ada_King": " ".join(names)}


def test_nothing_usable_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    for name in write_split(tmp_path, "a"):
        audio_path(tmp_path, "a", name).write_bytes(b"")
    with pytest.raises(UserError, match="a: none of 6 utterances can be used; "):
        prepare(tmp_path)
    assert not (tmp_path / "data" / "a").exists()


def test_a_mended_file_is_seen_by_the_next_run(tmp_path: Path) -> None:
    name = write_split(tmp_path, "a")[0]
    path = audio_path(tmp_path, "a", name)
    whole = path.read_bytes()
    path.write_bytes(b"")
    assert name not in read_table(prepare(tmp_path) / "text")
    path.write_bytes(whole)
    assert name in read_table(prepare(tmp_path) / "text")


def test_limit_keeps_speakers_and_is_deterministic(tmp_path: Path) -> None:
    write_split(tmp_path, "a", speakers=4, utterances=3)
    kept = read_table(prepare(tmp_path, limit=4) / "utt2spk")
    assert len(kept) == 4
    assert len(set(kept.values())) == 4
    assert read_table(prepare_split(tmp_path / "LibriSpeech", "again", ["a"], tmp_path / "data", 4) / "utt2spk") == kept
    with pytest.raises(UserError, match="limit: 0"):
        prepare(tmp_path, limit=0)


def test_speed_copies_have_their_own_names_and_lengths(tmp_path: Path) -> None:
    write_split(tmp_path, "a")
    data = prepare(tmp_path)
    copies = perturb_speed(data, tmp_path / "data" / "a_sp", [0.9, 1.1])
    texts, durations = read_table(data / "text"), read_table(data / "utt2dur")
    found, lengths = read_table(copies / "text"), read_table(copies / "utt2dur")
    assert len(found) == 3 * len(texts)
    for name, text in texts.items():
        for factor in (0.9, 1.1):
            assert found[f"{name}_sp{factor}"] == text
            assert float(lengths[f"{name}_sp{factor}"]) == pytest.approx(float(durations[name]) / factor, abs=2e-4)
    assert not (copies / "wav.scp").exists()  # the changed audio is in no file
    for cut in read_cuts(copies):
        assert cut.load_audio().shape == (1, round(cut.duration * RATE))


def test_speed_moves_the_pitch(tmp_path: Path) -> None:
    write_split(tmp_path, "a", speakers=1, utterances=1)
    path = next((tmp_path / "LibriSpeech" / "a").rglob("*.flac"))
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE) + 1e-3 * noise(1.0), RATE)
    copies = perturb_speed(prepare(tmp_path), tmp_path / "data" / "a_sp", [1.1])
    for cut in read_cuts(copies):
        samples = cut.load_audio()[0]
        peak = np.abs(np.fft.rfft(samples)).argmax() * RATE / len(samples)
        assert peak == pytest.approx(1100 if "_sp1.1" in cut.id else 1000, abs=2)


@pytest.mark.parametrize("factors", [[], [1.0], [0.9, 0.9], [3.0], [float("nan")]])
def test_impossible_speeds_are_refused(tmp_path: Path, factors: list[float]) -> None:
    write_split(tmp_path, "a")
    with pytest.raises(UserError, match="speeds: "):
        perturb_speed(prepare(tmp_path), tmp_path / "data" / "a_sp", factors)


def test_stage_2_needs_stage_1(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run the stage before this one first"):
        perturb_speed(tmp_path / "data" / "a", tmp_path / "data" / "a_sp", [0.9])
