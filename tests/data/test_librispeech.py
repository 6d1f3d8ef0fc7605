"""Listing folders of LibriSpeech's layout, and every way in which they can be wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from espnet_todm.data.librispeech import corpus_folder, download, list_utterances, parse_split
from espnet_todm.errors import UserError
from tests.tiny_corpus import audio_path, write_split


def test_lists_audio_speakers_and_words(tmp_path: Path) -> None:
    names = write_split(tmp_path, "train-a", speakers=2, utterances=3)
    listing = list_utterances(tmp_path / "LibriSpeech", ["train-a"])
    assert [one.name for one in listing.utterances] == sorted(names)
    for one in listing.utterances:
        assert one.audio == audio_path(tmp_path, "train-a", one.name)
        assert one.speaker == one.name.split("-")[0]
        assert one.text


def test_folders_join_and_the_digest_sees_every_change(tmp_path: Path) -> None:
    names = write_split(tmp_path, "a") + write_split(tmp_path, "b")
    corpus = tmp_path / "LibriSpeech"
    listing = list_utterances(corpus, ["b", "a"])
    assert [one.name for one in listing.utterances] == sorted(names)
    assert list_utterances(corpus, ["a", "b"]).digest == listing.digest
    audio_path(tmp_path, "a", names[0]).write_bytes(b"shorter")
    assert list_utterances(corpus, ["a", "b"]).digest != listing.digest


def test_what_is_missing_is_listed_as_none(tmp_path: Path) -> None:
    first, second, third = write_split(tmp_path, "a", speakers=1)
    audio_path(tmp_path, "a", first).unlink()
    transcript = next((tmp_path / "LibriSpeech" / "a").rglob("*.trans.txt"))
    lines = transcript.read_text().splitlines()
    transcript.write_text(f"{lines[0]}\n{third} \n")  # the second has no line, the third no words
    found = {one.name: one for one in list_utterances(tmp_path / "LibriSpeech", ["a"]).utterances}
    assert found[first].audio is None and found[first].text
    assert found[second].audio and found[second].text is None
    assert found[third].audio and found[third].text is None


def test_linked_speakers_capitals_and_what_macos_adds(tmp_path: Path) -> None:
    names = write_split(tmp_path, "a", speakers=3)
    top = tmp_path / "LibriSpeech" / "a"
    first, second, third = sorted(top.iterdir())
    first.rename(tmp_path / "elsewhere")
    first.symlink_to(tmp_path / "elsewhere")
    for path in list(second.rglob("*.*")):
        path.rename(path.with_name(path.stem + path.suffix.upper()))
    for path in list(third.rglob("*.*")):
        path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07 no audio, and no text: \xff")
    found = list_utterances(tmp_path / "LibriSpeech", ["a"]).utterances
    assert [one.name for one in found] == sorted(names)
    assert all(one.audio and one.text for one in found)


def test_a_speaker_s_name_has_no_spaces(tmp_path: Path) -> None:
    write_split(tmp_path, "a", speakers=1)
    top = tmp_path / "LibriSpeech" / "a"
    next(top.iterdir()).rename(top / "Ada  King Lovelace")
    assert {one.speaker for one in list_utterances(tmp_path / "LibriSpeech", ["a"]).utterances} == {"Ada_King_Lovelace"}


def remove_transcripts(folder: Path) -> None:
    for path in folder.rglob("*.trans.txt"):
        path.unlink()


def remove_audio(folder: Path) -> None:
    for path in folder.rglob("*.flac"):
        path.unlink()


def double_a_line(folder: Path) -> None:
    path = next(folder.rglob("*.trans.txt"))
    path.write_text(path.read_text() + path.read_text().splitlines()[0])


def write_latin(folder: Path) -> None:
    next(folder.rglob("*.trans.txt")).write_bytes(b"1-1-1 caf\xe9\n")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (remove_transcripts, "no transcripts in it"),
        (remove_audio, "no audio in it"),
        (double_a_line, "is listed twice"),
        (write_latin, "not UTF-8"),
    ],
)
def test_unusable_folders_are_refused_in_words(tmp_path: Path, harm, message: str) -> None:
    write_split(tmp_path, "a")
    harm(tmp_path / "LibriSpeech" / "a")
    with pytest.raises(UserError, match=message):
        list_utterances(tmp_path / "LibriSpeech", ["a"])


def test_a_file_name_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    write_split(tmp_path, "a")
    path = next((tmp_path / "LibriSpeech" / "a").rglob("*.flac"))
    try:
        path.rename(os.fsdecode(os.fsencode(path.parent / "caf") + b"\xe9.flac"))
    except OSError:
        pytest.skip("this file system has names in UTF-8 only")
    with pytest.raises(UserError, match=r"caf\\udce9\.flac.*: the file's name is not UTF-8; rename it"):
        list_utterances(tmp_path / "LibriSpeech", ["a"])


def test_a_missing_folder_names_those_that_are_there(tmp_path: Path) -> None:
    write_split(tmp_path, "a")
    write_split(tmp_path, "b")
    with pytest.raises(UserError, match=r"c: no such folder in .*; there are: a, b$"):
        list_utterances(tmp_path / "LibriSpeech", ["c"])


def test_the_same_utterance_in_two_folders_is_refused(tmp_path: Path) -> None:
    write_split(tmp_path, "a")
    (tmp_path / "LibriSpeech" / "a").rename(tmp_path / "LibriSpeech" / "b")
    write_split(tmp_path, "a")
    with pytest.raises(UserError, match="listed twice"):
        list_utterances(tmp_path / "LibriSpeech", ["a", "b"])


def test_corpus_folder_is_the_one_given_or_the_librispeech_in_it(tmp_path: Path) -> None:
    assert corpus_folder(tmp_path) == tmp_path
    (tmp_path / "LibriSpeech").mkdir()
    assert corpus_folder(tmp_path) == tmp_path / "LibriSpeech"
    for missing in ("", tmp_path / "none"):
        with pytest.raises(UserError, match=r"corpus: .* is no folder"):
            corpus_folder(missing)


def test_split_names(tmp_path: Path) -> None:
    assert parse_split("train-mini") == ("train-mini", ("train-mini",))
    assert parse_split("train-960") == ("train-960", ("train-clean-100", "train-clean-360", "train-other-500"))
    assert parse_split("all=x+y") == ("all", ("x", "y"))
    assert parse_split("dev", tmp_path) == ("dev", ("dev-clean", "dev-other"))
    (tmp_path / "LibriSpeech" / "dev").mkdir(parents=True)
    assert parse_split("dev", tmp_path) == ("dev", ("dev",))  # the corpus has a folder of that name
    for bad in ("", "=x", "..", "all=", "all=x+", "a/b", "../a"):
        with pytest.raises(UserError, match="split: "):
            parse_split(bad)


def test_only_official_parts_can_be_downloaded(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no part 'train-mini' of LibriSpeech; there are dev-clean"):
        download(tmp_path, ["dev-clean", "train-mini"])


def test_parts_that_are_there_are_not_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lhotse.recipes.librispeech as recipe

    (tmp_path / "LibriSpeech" / "dev-clean").mkdir(parents=True)
    asked: list[list[str]] = []
    monkeypatch.setattr(recipe, "download_librispeech", lambda folder, dataset_parts: asked.append(dataset_parts))
    download(tmp_path, ["dev-clean", "test-clean"])
    assert asked == [["test-clean"]]
