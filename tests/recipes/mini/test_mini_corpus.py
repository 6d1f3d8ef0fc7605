from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import mini_corpus
import mini_speech
import numpy as np
import pytest
import soundfile
from make_mini_corpus import main
from mini_corpus import FOLDER, MARKER, MiniOptions, make_mini_corpus, plan_split
from mini_text import SLOTS, SPLITS, split_of

from espnet_todm.errors import UserError
from espnet_todm.util.files import read_json

SMALL = MiniOptions(train_minutes=0.5, dev_minutes=0.2, test_minutes=0.2, speaker_seconds=4, open_share=0.3)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed: pip install espnet_todm[mini]")
    return make_mini_corpus(tmp_path_factory.mktemp("mini"), SMALL, nj=2)


@pytest.fixture(scope="module")
def rows(corpus) -> list[dict[str, str]]:
    with (corpus / "utterances.tsv").open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


def test_the_layout_is_librispeechs(corpus, rows):
    for split in SPLITS:
        texts = {}
        for listing in corpus.glob(f"{split}/*/*/*.trans.txt"):
            speaker, chapter = listing.parent.parent.name, listing.parent.name
            assert speaker.isdigit()
            assert chapter.isdigit()
            assert listing.name == f"{speaker}-{chapter}.trans.txt"
            for line in listing.read_text(encoding="utf-8").splitlines():
                name, text = line.split(" ", 1)
                assert (listing.parent / f"{name}.flac").is_file()
                assert name.startswith(f"{speaker}-{chapter}-")
                texts[name] = text
        assert len(texts) == len(list(corpus.glob(f"{split}/*/*/*.flac")))
        assert texts == {row["utterance"]: row["text"] for row in rows if row["split"] == split}
        assert all(text == text.upper() and set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ '") for text in texts.values())
    listed = [line.split(" | ")[0] for line in (corpus / "SPEAKERS.TXT").read_text().splitlines()[1:]]
    assert sorted(listed) == sorted({row["utterance"].split("-")[0] for row in rows})


def test_lhotse_reads_it_as_librispeech(corpus):
    recipes = pytest.importorskip("lhotse.recipes")
    manifests = recipes.prepare_librispeech(corpus, dataset_parts=SPLITS)
    for split in SPLITS:
        assert len(manifests[split]["recordings"]) == len(list(corpus.glob(f"{split}/*/*/*.flac"))) > 0


def test_audio_is_16_bit_at_16_khz_without_clipping(corpus, rows):
    for row in rows:
        speaker, chapter, _ = row["utterance"].split("-")
        path = corpus / row["split"] / speaker / chapter / f"{row['utterance']}.flac"
        about = soundfile.info(str(path))
        assert (about.samplerate, about.channels, about.subtype) == (16000, 1, "PCM_16")
        samples, _ = soundfile.read(path, dtype="int16")
        peak = np.abs(samples.astype(int)).max() / 32768
        assert 0.02 < peak <= mini_speech.PEAK + 1e-3
        assert len(samples) / 16000 == pytest.approx(float(row["seconds"]), abs=1e-3)
        assert 0.7 < float(row["seconds"]) < 7
        assert SMALL.snr_low <= float(row["snr"]) <= SMALL.snr_high


def test_minutes_are_reached_and_little_passed(corpus, rows):
    for split in SPLITS:
        seconds = sum(float(row["seconds"]) for row in rows if row["split"] == split)
        wanted = 60 * getattr(SMALL, f"{split}_minutes")
        speakers = round(wanted / SMALL.speaker_seconds)
        assert wanted <= seconds <= wanted + 7 * speakers
    assert read_json(corpus / MARKER)["splits"]["test"]["sentences_in_train"] == 0


def test_voices_and_sentences_of_dev_and_test_are_not_in_train(rows):
    for fact in ("voice", "text"):
        sets = [{row[fact] for row in rows if row["split"] == split} for split in SPLITS]
        assert sum(map(len, sets)) == len(set().union(*sets))
    assert all(split_of(row["text"].lower()) == row["split"] for row in rows)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_the_default_plan_keeps_voices_and_sentences_apart(seed):
    options = MiniOptions(seed=seed)
    plans = [plan for split in SPLITS for plan in plan_split(split, options)]
    assert len({plan.speaker for plan in plans}) == len(plans)
    sentences = [sentence for plan in plans for sentence in plan.sentences]
    assert len(sentences) == len(set(sentences))
    variants = {split: {plan.voice.variant for plan in plans if plan.split == split} for split in SPLITS}
    assert not variants["train"] & (variants["dev"] | variants["test"])
    assert not variants["dev"] & variants["test"]
    for plan in plans:
        assert {babbler.variant for babbler in plan.babblers} <= variants[plan.split]
    for sex in "FM":  # as many women's voices as men's, and none again before all have spoken
        train = [plan.voice.name for plan in plans if (plan.split, plan.voice.sex) == ("train", sex)]
        total = len(mini_speech.ACCENTS) * sum(sex == of for _, of in mini_speech.VARIANTS["train"])
        assert len(train) == 62 and len(set(train)) == min(total, len(train))


def test_the_same_options_give_the_same_bytes_at_any_nj(corpus, tmp_path):
    assert digests(make_mini_corpus(tmp_path, SMALL, nj=1)) == digests(corpus)


def test_another_seed_gives_other_sentences(corpus):
    one, two = (plan_split("test", MiniOptions(seed=seed)) for seed in (1, 2))
    assert one[0].sentences != two[0].sentences
    assert one == plan_split("test", MiniOptions(seed=1))


def test_a_second_run_skips_and_other_options_make_it_again(tmp_path, monkeypatch):
    pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed: pip install espnet_todm[mini]")
    arguments = ["--output", str(tmp_path), "--train_minutes", "0.05", "--dev_minutes", "0", "--test_minutes", "0.05"]
    main(arguments)
    folder = tmp_path / FOLDER
    before = (folder / MARKER).stat().st_mtime_ns
    main(arguments)
    assert (folder / MARKER).stat().st_mtime_ns == before
    (tmp_path / f".{FOLDER}.killed.part").mkdir()
    main([*arguments, "--seed", "2"])
    assert read_json(folder / MARKER)["options"]["seed"] == 2
    assert not (folder / "dev").exists()

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(mini_corpus.speech, "mix", fail)
    with pytest.raises(UserError, match="no space left"):
        main([*arguments, "--seed", "3"])
    assert read_json(folder / MARKER)["options"]["seed"] == 2
    assert [path.name for path in tmp_path.iterdir()] == [FOLDER]


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed: pip install espnet_todm[mini]")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: is a file, but must be a folder"):
        make_mini_corpus(tmp_path / "file", SMALL)


def test_a_folder_that_is_no_mini_corpus_is_left_alone(tmp_path):
    pytest.importorskip("espeakng_loader", reason="espeakng-loader is not installed: pip install espnet_todm[mini]")
    (tmp_path / FOLDER / "train-clean-100").mkdir(parents=True)
    with pytest.raises(UserError, match=MARKER):
        make_mini_corpus(tmp_path, SMALL)
    assert (tmp_path / FOLDER / "train-clean-100").is_dir()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_minutes", -1),
        ("open_share", 1.5),
        ("vocabulary_share", 0.0),
        ("snr_low", 30.0),
        ("snr_high", 200.0),
        ("seed", -1),
        ("speaker_seconds", 0.0),
        ("test_minutes", float("nan")),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(key, value):
    with pytest.raises(UserError, match=f"{key}=.*allowed"):
        MiniOptions(**{key: value})


def test_more_minutes_than_the_grammar_has_sentences_are_refused(monkeypatch):
    monkeypatch.setitem(SLOTS, "assistant", ("dial {digit} {digit}",))
    with pytest.raises(UserError, match=r"dev_minutes=4: .*vocabulary_share=0.5"):
        plan_split("dev", MiniOptions(open_share=0.0))
