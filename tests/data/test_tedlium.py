"""Reading TED-LIUM 2's layout, and every way in which it can be wrong. All sph and stm files here are made."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from espnet_todm.bin.prepare_data import main
from lhotse import CutSet
from lhotse.cut import MonoCut

from espnet_todm.data.audio import libsndfile, read
from espnet_todm.data.corpus import perturb_speed, prepare_split
from espnet_todm.data.features import FeatureOptions, compute_features, read_measures
from espnet_todm.data.tables import read_cuts, read_problems
from espnet_todm.data.tedlium import TedliumOptions, corpus_folder, list_utterances, read_stm, words_of
from espnet_todm.errors import UserError
from espnet_todm.util.files import read_table
from tests.sph_corpus import RATE, stm_line, write_shorten, write_split, write_split_of_speech, write_talk
from tests.tiny_corpus import noise, truncate

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "librispeech_mini"
TALK = "Speaker0_dev"


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """The folder TEDLIUM_release2 with a split dev of two talks."""
    write_split(tmp_path, "dev")
    return tmp_path / "TEDLIUM_release2"


def prepare(top: Path, split: str = "dev", limit: int | None = None) -> Path:
    return prepare_split(top, split, [split], top.parent / "data", limit, list_utterances)


def samples_of(cut: MonoCut) -> np.ndarray:
    """A cut's samples (T,), read as stage 3 reads them."""
    with libsndfile():
        measure, samples = read(cut)
    assert samples is not None, measure.error
    return samples[0]


def stm(top: Path) -> Path:
    return top / "dev" / "stm" / f"{TALK}.stm"


def add_line(top: Path, line: str) -> int:
    """Add a line to a talk's stm file; returns its number."""
    stm(top).write_text(stm(top).read_text() + line)
    return len(stm(top).read_text().splitlines())


def test_names_speakers_words_and_times(tmp_path: Path) -> None:
    texts = write_split(tmp_path, "dev", talks=2, segments=4)
    data = prepare(tmp_path / "TEDLIUM_release2")
    assert read_table(data / "text") == texts and len(texts) == 8
    for name, speaker in read_table(data / "utt2spk").items():
        talk, start, end = name.rsplit("-", 2)
        assert speaker == talk
        segment = read_table(data / "segments")[name].split()
        assert segment[0] == talk and [float(time) for time in segment[1:]] == [int(start) / 100, int(end) / 100]
        assert float(read_table(data / "utt2dur")[name]) == pytest.approx((int(end) - int(start)) / 100)
    assert {Path(path).stem: path for path in read_table(data / "wav.scp").values()} == read_table(data / "wav.scp")


def test_a_segment_s_samples_are_those_of_its_times(top: Path) -> None:
    for cut in read_cuts(prepare(top)):
        talk, start, end = cut.id.rsplit("-", 2)
        whole, rate = soundfile.read(top / "dev" / "sph" / f"{talk}.sph", dtype="float32")
        assert rate == RATE
        np.testing.assert_array_equal(samples_of(cut), whole[int(start) * 160 : int(end) * 160])


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_segment_at_another_speed_has_its_own_audio(top: Path, tmp_path: Path, factor: float) -> None:
    data = perturb_speed(prepare(top), tmp_path / "faster", [factor])
    assert not (data / "wav.scp").exists() and not (data / "segments").exists()
    cuts = {cut.id: cut for cut in read_cuts(data)}
    for name, cut in cuts.items():
        if "_sp" not in name:
            faster = cuts[f"{name}_sp{factor}"]
            assert faster.duration == pytest.approx(cut.duration / factor, abs=2e-4)
            levels = [np.sqrt(np.square(samples_of(one)).mean()) for one in (cut, faster)]
            assert 0.7 < levels[0] / levels[1] < 1.4  # not the silence between segments


@pytest.mark.parametrize("suffix", [".sph", ".wav"])
@pytest.mark.parametrize("feats_type", ["fbank", "raw"])
def test_features_are_those_of_segments_cut_out(top: Path, tmp_path: Path, suffix: str, feats_type: str) -> None:
    for path in (top / "dev" / "sph").glob("*.sph"):
        if suffix == ".wav":
            soundfile.write(path.with_suffix(".wav"), soundfile.read(path, dtype="int16")[0], RATE)
            path.write_bytes(b"no audio: a converted file goes first")
    data = prepare(top)
    compute_features({data: tmp_path / "out"}, FeatureOptions(feats_type), jobs=1)
    measures = {measure.utterance: measure for measure in read_measures(tmp_path / "out")}
    for cut in CutSet.from_file(data / "cuts.jsonl.gz"):
        measure = measures[cut.id]
        assert measure.error is None and measure.seconds == pytest.approx(cut.duration)
        samples = samples_of(cut)
        if feats_type == "raw":
            np.testing.assert_array_equal(soundfile.read(measure.where, dtype="float32")[0], samples)
        else:
            assert measure.frames == pytest.approx(len(samples) / 160, abs=2)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("it 's the dogs ' we 're o 'clock", "it's the dogs' we're o'clock"),
        ("<sil> read(2) it(3) (Talk-1)", "read it"),
        ("and <sil> {NOISE} then", "and [NOISE] then"),
        ("so <unk> they", "so <unk> they"),
        ("so ' cause", "so' cause"),
        ("' cause we", "cause we"),  # joins the label in ESPnet's script
        ("'cause we", "we"),  # the same
        ("<sil>", ""),
        ("(Talk-1)", ""),
        ("", ""),
    ],
)
def test_words_are_those_of_espnet_s_recipe(line: str, wanted: str) -> None:
    assert " ".join(words_of("<o,f0,male>", line.split())) == wanted


def test_unknown_words_can_be_removed(top: Path) -> None:
    add_line(top, stm_line(TALK, 0.0, 0.2, "so <unk> they 're"))
    for unknown, text in (("keep", "so <unk> they're"), ("remove", "so they're")):
        assert read_stm(stm(top), TedliumOptions(unknown))[-1].text == text
    listings = [list_utterances(top, ["dev"], TedliumOptions(unknown)) for unknown in ("keep", "remove")]
    assert listings[0].digest != listings[1].digest
    with pytest.raises(UserError, match="unknown: 'drop' is unknown; allowed: keep, remove"):
        TedliumOptions("drop")
    with pytest.raises(UserError, match="max_overlap: -1 is not allowed, it must be a finite number >= 0"):
        TedliumOptions(max_overlap=-1)


def test_gaps_ignored_segments_comments_and_doubled_lines_are_skipped(top: Path) -> None:
    before = list_utterances(top, ["dev"])
    assert len(before.utterances) == 6 and "inter_segment_gap" in stm(top).read_text()
    add_line(top, stm_line(TALK, 0.0, 0.2, "ignore_time_segment_in_scoring", "S1", "<o,,unknown>"))
    add_line(top, ";; a comment\n\n")
    after = list_utterances(top, ["dev"])
    assert list(after.utterances) == list(before.utterances) and after.digest != before.digest


def test_nist_writes_ignored_segments_in_capitals(top: Path) -> None:
    before = list_utterances(top, ["dev"])
    add_line(top, stm_line(TALK, 0.0, 0.2, "IGNORE_TIME_SEGMENT_IN_SCORING", "INTER_SEGMENT_GAP", "<O,,UNKNOWN>"))
    add_line(top, f"{TALK} 1 S1 0.2 0.3 IGNORE_TIME_SEGMENT_IN_SCORING\n")
    assert list(list_utterances(top, ["dev"]).utterances) == list(before.utterances)


def test_a_talk_of_comments_alone_is_told_and_a_split_of_them_refused(
    top: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stm(top).write_text(";; nothing was transcribed\n  ;; at all\n")
    assert len(list_utterances(top, ["dev"]).utterances) == 3
    assert f"{TALK}.stm: no segment to recognise in it" in caplog.text
    for path in (top / "dev" / "stm").iterdir():
        path.write_text(";; nothing\n")
    with pytest.raises(UserError, match=r"dev: no utterance in dev of .*; an empty split cannot be used"):
        prepare(top)
    assert not (top.parent / "data" / "dev").exists()


def test_capital_extensions_and_links(top: Path, tmp_path: Path) -> None:
    before = [one.name for one in list_utterances(top, ["dev"]).utterances]
    for folder in ("sph", "stm"):
        for path in list((top / "dev" / folder).iterdir()):
            path.rename(path.with_suffix(path.suffix.upper()))
    (top / "dev" / "sph").rename(tmp_path / "disk")
    (top / "dev" / "sph").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / f"._{TALK}.SPH").write_bytes(b"of macOS")
    assert [one.name for one in list_utterances(top, ["dev"]).utterances] == before
    assert len(read_table(prepare(top) / "text")) == 6


def test_what_a_cut_off_talk_still_holds_is_used(top: Path) -> None:
    truncate(top / "dev" / "sph" / f"{TALK}.sph", 0.6)
    problems = {one.utterance: one for one in read_problems(prepare(top) / "problems.tsv")}
    assert problems and all(one.reason == "truncated" for one in problems.values())
    for cut in read_cuts(top.parent / "data" / "dev"):
        assert cut.id not in problems and len(samples_of(cut)) == round(cut.duration * RATE)


def test_a_doubled_line_counts_once(top: Path) -> None:
    lines = stm(top).read_text().splitlines(keepends=True)
    stm(top).write_text("".join(line * 2 for line in lines))
    assert len(list_utterances(top, ["dev"]).utterances) == 6


def test_a_segment_without_words_is_a_problem(top: Path) -> None:
    add_line(top, stm_line(TALK, 0.0, 0.2, "<sil>"))
    data = prepare(top)
    problems = read_problems(data / "problems.tsv")
    assert [(one.utterance, one.reason) for one in problems] == [(f"{TALK}-0000000-0000020", "no-transcript")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{TALK} 1 {TALK} 0.0 0.2\n", "5 fields, but an stm line has talk, channel, speaker, start, end, <label>"),
        (f"{TALK} 1 {TALK} zero 0.2 <o> hello\n", "start 'zero', end '0.2', but numbers of seconds"),
        (f"{TALK} 1 {TALK} 0,1 0,2 <o> hello\n", "start '0,1', end '0,2', but .*; write decimals with a point"),
        (f"{TALK} 1 {TALK} 0.2 0.1 <o> hello\n", "start 0.2, end 0.1, but 0 <= start < end"),
        (f"{TALK} 1 {TALK} -1 0.1 <o> hello\n", "start -1, end 0.1, but 0 <= start < end"),
        (f"{TALK} 1 {TALK} 0.0 nan <o> hello\n", "end nan, but"),
        (f"{TALK} 1 {TALK} 0.0 0.2 hello there\n", "label 'hello', but one like <o,f0,male>"),
        (f"{TALK} 1 {TALK} 0.0 0.2 <> hello\n", "label '<>', but one like <o,f0,male>"),
        (stm_line(TALK, 0.0, 99.0, "hello"), r"segment 0 to 99 s, but .*Speaker0_dev.sph has \d\.\d\d s"),
        (stm_line(TALK, 90.0, 99.0, "hello"), "segment 90 to 99 s, but"),
        (stm_line(TALK, 0.0, 0.6, "hello"), r"0\.20 s with the segment of .*dev.stm:\d+, but max_overlap is 0.1 s"),
        (stm_line("Nobody", 0.0, 0.2, "hello"), r"no audio Nobody.sph in .*sph$"),
    ],
)
def test_a_bad_line_is_named_in_one_line(top: Path, line: str, message: str) -> None:
    number = add_line(top, line)
    with pytest.raises(UserError, match=message) as caught:
        list_utterances(top, ["dev"])
    words = str(caught.value)
    assert "\n" not in words and (f"{stm(top)}:{number}: " in words or "with the segment" in words)


def test_small_overlaps_and_overshoots_pass(top: Path) -> None:
    seconds = soundfile.info(top / "dev" / "sph" / f"{TALK}.sph").duration
    add_line(top, stm_line(TALK, 0.0, 0.45, "early") + stm_line(TALK, seconds - 0.2, seconds + 0.3, "late"))
    cuts = {cut.supervisions[0].text: cut for cut in read_cuts(prepare(top))}
    assert cuts["early"].end == 0.45
    assert cuts["late"].end == pytest.approx(seconds) and len(samples_of(cuts["late"])) == 3200
    add_line(top, stm_line(TALK, 0.0, 0.7, "earlier"))
    with pytest.raises(UserError, match=r"max_overlap is 0\.1 s"):
        list_utterances(top, ["dev"])
    assert len(list_utterances(top, ["dev"], TedliumOptions(max_overlap=1)).utterances) == 9


def remove_sph(top: Path) -> None:
    (top / "dev" / "sph" / f"{TALK}.sph").unlink()


def remove_stm(top: Path) -> None:
    stm(top).unlink()


def shorten(top: Path) -> None:
    write_shorten(top / "dev" / "sph" / f"{TALK}.sph")


def remove_all_audio(top: Path) -> None:
    for path in (top / "dev" / "sph").glob("*"):
        path.unlink()


def latin(top: Path) -> None:
    stm(top).write_bytes(b"caf\xe9")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (remove_sph, rf"{TALK}.stm:\d+: no audio {TALK}.sph in .*sph$"),
        (remove_stm, rf"{TALK}.sph: no transcript {TALK}.stm in .*stm$"),
        (shorten, rf"{TALK}.sph: compressed with shorten, .*`sph2pipe -f wav {TALK}.sph {TALK}.wav` \(or shorten -x\)"),
        (remove_all_audio, "no audio in it"),
        (latin, "not UTF-8"),
        (lambda top: (top / "dev" / "stm").rename(top / "stm"), r"stm: no such folder in .*dev; there are: sph$"),
        (lambda top: (top / "dev").rename(top / "other"), r"dev: no such folder in .*; there are: other$"),
    ],
)
def test_unusable_corpora_are_refused_in_words(top: Path, harm: Callable[[Path], None], message: str) -> None:
    harm(top)
    with pytest.raises(UserError, match=message) as caught:
        list_utterances(top, ["dev"])
    assert "\n" not in str(caught.value)


def test_a_converted_file_beside_a_compressed_one_is_used(top: Path) -> None:
    sph = top / "dev" / "sph" / f"{TALK}.sph"
    soundfile.write(sph.with_suffix(".wav"), soundfile.read(sph, dtype="int16")[0], RATE)
    write_shorten(sph)
    assert len(read_table(prepare(top) / "text")) == 6


def test_unreadable_audio_goes_to_problems(top: Path) -> None:
    sph = top / "dev" / "sph" / f"{TALK}.sph"
    sph.write_bytes(b"no sphere file at all")
    problems = read_problems(prepare(top) / "problems.tsv")
    assert [one.reason for one in problems] == ["unreadable"] * 3


def test_the_corpus_is_the_folder_given_or_the_one_in_it(tmp_path: Path) -> None:
    write_split(tmp_path, "dev")
    assert corpus_folder(tmp_path) == corpus_folder(tmp_path / "TEDLIUM_release2") == tmp_path / "TEDLIUM_release2"
    with pytest.raises(UserError, match=r"corpus: .* is no folder; give the one that holds TEDLIUM_release2/"):
        corpus_folder(tmp_path / "none")


def test_stage_1_warns_when_official_sets_are_not_whole(
    top: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ["--corpus", str(tmp_path), "--layout", "tedlium2", "--splits", "dev", "--output", str(tmp_path / "d")]
    main([*arguments, "--official", "tedlium2"])
    assert "dev has 6 sentences" in caplog.text
    assert "466 and 14671 or 507 and 17783: results cannot be compared with published ones" in caplog.text
    with pytest.raises(UserError, match="TED-LIUM is not downloaded here"):
        main([*arguments, "--download"])


def test_times_of_whole_files_and_equal_segments(tmp_path: Path) -> None:
    """A talk that is one segment from beginning to end is still named by its times; a name may not come twice."""
    top = tmp_path / "TEDLIUM_release2"
    write_talk(top / "dev", "One", [(noise(1.0), "HELLO THERE")])
    (top / "dev" / "stm" / "One.stm").write_text(stm_line("One", 0, 1.8, "hello"))
    assert list(read_table(prepare(top) / "text")) == ["One-0000000-0000180"]
    (top / "dev" / "stm" / "One.stm").write_text(stm_line("One", 0, 1.8, "hello") + stm_line("One", 0, 1.8, "there"))
    wide = partial(list_utterances, options=TedliumOptions(max_overlap=9))
    with pytest.raises(UserError, match="listed twice"):
        wide(top, ["dev"])


@pytest.mark.real_speech
@pytest.mark.skipif(not REAL.is_dir(), reason="no real speech beside the checkout")
def test_real_speech_in_made_sph_files(tmp_path: Path) -> None:
    texts = write_split_of_speech(tmp_path, "dev", REAL, "dev-mini", 12)
    data = prepare(tmp_path / "TEDLIUM_release2")
    assert read_table(data / "text") == texts and len(texts) == 12
    for cut in read_cuts(data):
        assert np.abs(samples_of(cut)).max() > 0.05  # speech, not a gap
