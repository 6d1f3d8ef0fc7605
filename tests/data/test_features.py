"""Stage 3: the features themselves, bad audio on the way, shards, kills, and how ESPnet reads the result."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import kaldiio
import numpy as np
import pytest
import soundfile
import torch
from espnet2.train.dataset import ESPnetDataset
from torchaudio.compliance.kaldi import fbank

from espnet_todm.data.corpus import perturb_speed, prepare_split
from espnet_todm.data.features import FeatureOptions, compute_features, read_measures
from espnet_todm.errors import UserError
from espnet_todm.util.stage_marker import fingerprint
from tests.tiny_corpus import RATE, audio_path, noise, truncate, write_split


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe's folder with stage 1 done for split a (6 utterances); the test runs in it."""
    write_split(tmp_path, "a")
    folder = tmp_path / "recipe"
    folder.mkdir()
    monkeypatch.chdir(folder)
    prepare_split(tmp_path / "LibriSpeech", "a", ["a"], "data")
    return folder


def compute(output: str = "dump/fbank/org/a", data: str = "data/a", how: dict[str, Any] | None = None, **options: Any):
    compute_features({data: output}, FeatureOptions(**options), **(how or {}))
    return {measure.utterance: measure for measure in read_measures(output)}


def kaldi_fbank(path: Path) -> np.ndarray:
    """torchaudio's own implementation of Kaldi's features, with the settings that sherpa-onnx uses."""
    samples = torch.from_numpy(soundfile.read(path, dtype="float32")[0])[None]
    return fbank(samples, num_mel_bins=80, high_freq=-400, dither=0.0, snip_edges=False, energy_floor=1e-10).numpy()


def test_features_are_kaldis(recipe: Path) -> None:
    for name, measure in compute(compression="none").items():
        expected = kaldi_fbank(audio_path(recipe.parent, "a", name))
        found = kaldiio.load_mat(measure.where)
        assert found.dtype == np.float32 and found.shape == expected.shape == (measure.frames, 80)
        np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize(("compression", "error", "share"), [("two-byte", 3e-4, 0.51), ("one-byte", 0.2, 0.3)])
def test_compression_trades_size_for_a_known_error(recipe: Path, compression: str, error: float, share: float) -> None:
    plain = compute("plain/org/a", compression="none")
    packed = compute("packed/org/a", compression=compression)
    for name in plain:
        found, expected = kaldiio.load_mat(packed[name].where), kaldiio.load_mat(plain[name].where)
        assert np.abs(found - expected).max() < error
    sizes = [sum(path.stat().st_size for path in Path(folder).rglob("*.ark")) for folder in ("packed", "plain")]
    assert sizes[0] < share * sizes[1]


def test_shards_and_jobs_do_not_change_the_result(recipe: Path) -> None:
    one = compute("one/org/a")
    many = compute("many/org/a", shard=2, how={"jobs": 2})
    assert len(list(Path("many").rglob("*.ark"))) == 3
    assert list(one) == list(many)
    for name in one:
        np.testing.assert_array_equal(kaldiio.load_mat(one[name].where), kaldiio.load_mat(many[name].where))


def test_bad_audio_is_measured_and_does_not_end_the_stage(recipe: Path) -> None:
    names = sorted(path.stem for path in recipe.parent.rglob("*.flac"))
    paths = [audio_path(recipe.parent, "a", name) for name in names]
    soundfile.write(paths[1], noise(1.0, rate=8000), 8000)
    soundfile.write(paths[2], np.stack([noise(1.0), noise(1.0)], axis=1), RATE)
    soundfile.write(paths[3], noise(0.01), RATE)
    prepare_split(recipe.parent / "LibriSpeech", "a", ["a"], "data")
    truncate(paths[0])  # after stage 1, as when a disk fails
    paths[4].unlink()
    measures = compute()
    assert list(measures) == names
    assert [measure.where is None for measure in measures.values()] == [True] * 5 + [False]
    assert "lost sync" in (measures[names[0]].error or "")
    assert measures[names[1]].sampling_rate == 8000
    assert measures[names[2]].channels == 2
    assert measures[names[3]].seconds == 0.01
    assert measures[names[4]].error


def test_features_that_are_no_numbers_are_not_written(recipe: Path) -> None:
    path = next(recipe.parent.rglob("*.flac"))
    name = path.stem
    path.unlink()
    samples = 1e30 * noise(1.0)  # whose squares are infinite
    soundfile.write(path.with_suffix(".wav"), samples, RATE, subtype="FLOAT")
    prepare_split(recipe.parent / "LibriSpeech", "a", ["a"], "data")
    found = compute()
    assert found[name].error == "features that are no finite numbers" and found[name].where is None
    assert all(one.where for one in found.values() if one.utterance != name)


def test_speed_copies_are_computed_from_changed_audio(recipe: Path) -> None:
    perturb_speed("data/a", "data/a_sp", [0.9])
    measures = compute("dump/fbank/org/a_sp", "data/a_sp")
    assert len(measures) == 12
    for name, measure in measures.items():
        if not name.endswith("_sp0.9"):
            assert measures[f"{name}_sp0.9"].frames == pytest.approx(measure.frames / 0.9, abs=1)


def test_same_options_skip_and_others_redo(recipe: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    compute()
    before = fingerprint("dump/fbank/org/a")
    archive = next(Path("dump").rglob("*.ark"))
    made = archive.stat().st_mtime_ns
    compute()
    assert "skipped" in caplog.text and archive.stat().st_mtime_ns == made
    compute(compression="none")
    assert archive.stat().st_mtime_ns != made and fingerprint("dump/fbank/org/a") != before
    made = archive.stat().st_mtime_ns
    prepare_split(recipe.parent / "LibriSpeech", "a", ["a"], "data", limit=3)
    assert len(compute(compression="none")) == 3  # other input: made anew


def test_a_stopped_run_goes_on_with_what_is_missing(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import espnet_todm.data.features as module

    done: list[int] = []
    whole = module.compute_shard

    def stop_at_the_third(shard: module.Shard) -> None:
        if shard.number == 2:
            (shard.archive.parent / ".feats.0002.ark.x.part").touch()  # as a kill leaves it
            raise KeyboardInterrupt
        whole(shard)

    def count(shard: module.Shard) -> None:
        done.append(shard.number)
        whole(shard)

    monkeypatch.setattr(module, "compute_shard", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        compute(shard=2)
    with pytest.raises(UserError, match="run the stage before this one first"):
        fingerprint("dump/fbank/org/a")
    monkeypatch.setattr(module, "compute_shard", count)
    assert len(compute(shard=2)) == 6
    assert done == [2]
    assert sorted(path.name for path in Path("dump/fbank/org/a").iterdir()) == [
        ".completed",
        "archives",
        "measures.jsonl",
    ]
    assert not list(Path("dump").rglob("*.part"))


def test_an_unfinished_run_with_other_options_is_thrown_away(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import espnet_todm.data.features as module

    with monkeypatch.context() as patch:
        patch.setattr(module, "_finish", lambda *ignored: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            compute(compression="none")
    compute(compression="one-byte")
    content = next(Path("dump").rglob("*.ark")).read_bytes()
    assert b"\0BCM " in content and b"\0BFM " not in content


def test_espnet_reads_features_and_the_folder_can_be_moved(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measures = compute()
    Path("feats.scp").write_text("".join(f"{name} {one.where}\n" for name, one in measures.items()))
    moved = recipe.parent / "moved"
    monkeypatch.chdir(recipe.parent)
    shutil.move(recipe, moved)
    monkeypatch.chdir(moved)
    dataset = ESPnetDataset([("feats.scp", "speech", "kaldi_ark")])
    for name, measure in measures.items():
        assert dataset[name][1]["speech"].shape == (measure.frames, 80)


def test_raw_audio_points_at_good_files_and_writes_changed_ones(recipe: Path) -> None:
    perturb_speed("data/a", "data/a_sp", [1.1])
    measures = compute("dump/raw/org/a_sp", "data/a_sp", feats_type="raw", shard=5)
    Path("wav.scp").write_text("".join(f"{name} {one.where}\n" for name, one in measures.items()))
    dataset = ESPnetDataset([("wav.scp", "speech", "sound")])
    for name, measure in measures.items():
        assert len(dataset[name][1]["speech"]) == measure.frames
        if name.endswith("_sp1.1"):
            assert measure.where.startswith("dump/raw/org/a_sp/audio/")
        else:
            assert measure.where == str(audio_path(recipe.parent, "a", name))


def test_measures_are_json_lines(recipe: Path) -> None:
    compute()
    rows = [json.loads(line) for line in Path("dump/fbank/org/a/measures.jsonl").read_text().splitlines()]
    assert all(row["frames"] == pytest.approx(100 * row["seconds"], abs=1) for row in rows)


@pytest.mark.parametrize(
    "options",
    [{"feats_type": "mfcc"}, {"compression": "zip"}, {"sampling_rate": 16}, {"mel_bins": 0}, {"shard": 0}],
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        FeatureOptions(**options)


def test_stage_3_needs_the_data_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data/none: not there or not complete"):
        compute_features({"data/none": tmp_path / "out"}, FeatureOptions())


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty"])
@pytest.mark.parametrize(
    "reader", [compute, lambda: perturb_speed("data/a", "data/a_sp", [0.9])], ids=["features", "speed"]
)
def test_damaged_cuts_are_named(recipe: Path, reader: Any, damage: str) -> None:
    path = Path("data/a/cuts.jsonl.gz")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes({"flipped": content, "truncated": content[:-30], "empty": content[:5]}[damage])
    with pytest.raises(
        UserError, match=r"data/a/cuts\.jsonl\.gz: damaged \(.*; remove its folder and run stage 1 \(data\) again"
    ):
        reader()
    assert not Path("data/a_sp").exists()


@pytest.mark.parametrize("line", ["{", '{"utterance": "u", "secnds": 1}', "[1, 2]", '"u"', "7"])
def test_damaged_measures_are_named(recipe: Path, line: str) -> None:
    compute()
    path = Path("dump/fbank/org/a/measures.jsonl")
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=r"org/a/measures\.jsonl: damaged \(.*run stage 3 \(features\) again"):
        list(read_measures("dump/fbank/org/a"))


def test_cuts_whose_audio_is_a_command_are_refused(recipe: Path) -> None:
    """lhotse would run it."""
    with gzip.open("data/a/cuts.jsonl.gz", "rt", encoding="utf-8") as lines:
        cuts = [json.loads(line) for line in lines]
    cuts[0]["recording"]["sources"][0] |= {"type": "command", "source": "touch ran; cat nothing"}
    with gzip.open("data/a/cuts.jsonl.gz", "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(cut) + "\n" for cut in cuts)
    with pytest.raises(UserError, match=r"its audio is a command \(touch ran; cat nothing\), not a file"):
        compute()
    assert not Path("ran").exists()
