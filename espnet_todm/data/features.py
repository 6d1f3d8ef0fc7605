"""Stage 3: Kaldi filterbank features in kaldiio archives, or raw audio, and a measure of every utterance.

Audio is read here and only here, once. A file that cannot be used does not end the stage: it is measured as it is,
and stage 4 judges by the measures alone. Work goes in shards of a fixed number of utterances, so the output does not
depend on the number of jobs, memory holds one utterance at a time, and a killed run goes on with the shards that it
had not finished.

Output ``<features>/org/<split>/``: ``archives/feats.N.ark`` (or ``audio/N/*.flac``) and ``measures.jsonl``.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

import kaldiio
import numpy as np
import soundfile
from lhotse import Fbank, FbankConfig
from lhotse.cut import MonoCut

from espnet_todm.data.audio import Measure, libsndfile, read
from espnet_todm.data.tables import CUTS, cut_lines, is_whole, iterate_cuts
from espnet_todm.errors import damage_told
from espnet_todm.util.acoustics import MEL_BINS, SAMPLING_RATE
from espnet_todm.util.checks import check_choice, check_number
from espnet_todm.util.evenly import groups
from espnet_todm.util.files import (
    PathLike,
    atomic_directory,
    atomic_path,
    read_json,
    to_json,
    write_json,
    write_text,
)
from espnet_todm.util.launch import launch
from espnet_todm.util.stage_marker import MARKER, exclusive, fingerprint, is_complete, mark_complete

FEATS_TYPES = ("fbank", "raw")
# Kaldi's matrix compressions by kaldiio's numbers. Bytes per value and largest error seen on log energies of
# LibriSpeech: none 4, 0; two-byte 2, 2e-4; one-byte 1, 9e-2.
COMPRESSIONS: dict[str, Optional[int]] = {"none": None, "two-byte": 3, "one-byte": 2}
MEASURES = "measures.jsonl"
_FRAME_SECONDS = 0.025
_KEPT_FORMATS = (".flac", ".wav")  # raw audio that ESPnet reads where it lies


@dataclass(frozen=True)
class FeatureOptions:
    """What to compute.

    feats_type: ``fbank`` (Kaldi's: lhotse's Fbank with its default options; equal to sherpa-onnx's) or ``raw``
        (16-bit audio; files that need no change are pointed at where they lie).
    compression: of fbank archives, one of COMPRESSIONS. shard: utterances in one archive and one task.
    """

    feats_type: str = "fbank"
    sampling_rate: int = SAMPLING_RATE
    mel_bins: int = MEL_BINS
    compression: str = "two-byte"
    shard: int = 500

    def __post_init__(self) -> None:
        check_choice("feats_type", self.feats_type, FEATS_TYPES)
        check_choice("compression", self.compression, COMPRESSIONS)
        for key, least in (("sampling_rate", 1000), ("mel_bins", 1), ("shard", 1)):
            check_number(key, getattr(self, key), at_least=least, whole=True)


@dataclass(frozen=True)
class Shard:
    """One task: the cuts in ``cuts`` become archive ``number`` of ``folder``."""

    folder: Path
    number: int
    options: FeatureOptions

    @property
    def cuts(self) -> Path:
        return self.folder / "shards" / f"cuts.{self.number:04d}.jsonl"

    @property
    def measures(self) -> Path:
        """Written last: where it stands, the shard is complete."""
        return self.folder / "shards" / f"measures.{self.number:04d}.jsonl"

    @property
    def archive(self) -> Path:
        return self.folder / "archives" / f"feats.{self.number:04d}.ark"

    @property
    def audio(self) -> Path:
        return self.folder / "audio" / f"{self.number:04d}"


def compute_features(splits: Mapping[PathLike, PathLike], settings: FeatureOptions, **how: Any) -> None:
    """Stage 3. ``splits`` maps data folders to outputs (``<features>/org/<split>``); ``how`` goes to ``launch`` (jobs,
    launcher, logs).

    Paths in the measures begin with the output as given: relative ones let the recipe's folder be moved.
    Raises UserError when a data folder is not complete; JobError when a job fails for another reason than bad audio.
    """
    with ExitStack() as locks:
        begun: list[tuple[Path, list[Shard], dict[str, Any]]] = []
        for data, output in splits.items():
            folder = Path(output)
            wanted = {"stage": "features", **asdict(settings), "input": fingerprint(data)}
            locks.enter_context(exclusive(folder))
            if is_complete(folder, wanted):
                logging.info("%s: complete already with the same options, skipped", folder)
            else:
                begun.append((folder, _begin(Path(data), folder, settings, wanted), wanted))
        waiting = [shard for _, shards, _ in begun for shard in shards if not shard.measures.is_file()]
        launch(compute_shard, waiting, **{"name": "features", **how})
        for folder, shards, wanted in begun:
            _finish(folder, shards, wanted)


def compute_shard(shard: Shard) -> None:
    """Read, measure and write one shard's utterances. Measures appear last and whole."""
    with libsndfile():
        measures = _write_fbank(shard) if shard.options.feats_type == "fbank" else _write_audio(shard)
    write_text(shard.measures, "".join(to_json(measure.as_json()) + "\n" for measure in measures))


def read_measures(folder: PathLike) -> Iterator[Measure]:
    """The measures of a completed stage 3, in the order of the cuts."""
    path = Path(folder) / MEASURES
    with damage_told(path, "remove its folder and run stage 3 (features) again"), path.open(encoding="utf-8") as lines:
        for line in lines:
            yield Measure(**json.loads(line))


def fbank_extractor(sampling_rate: int = SAMPLING_RATE, mel_bins: int = MEL_BINS) -> Fbank:
    """Computes Kaldi's filterbank features, (T, mel_bins), of audio at a rate in Hz."""
    return Fbank(FbankConfig(sampling_rate=sampling_rate, num_filters=mel_bins))


def usable(measure: Measure, sampling_rate: int) -> bool:
    """Whether features can be computed at all."""
    return (
        measure.error is None
        and measure.sampling_rate == sampling_rate
        and measure.channels == 1
        and measure.seconds >= _FRAME_SECONDS
    )


def _begin(data: Path, folder: Path, options: FeatureOptions, wanted: dict[str, Any]) -> list[Shard]:
    """Cut the work into shards, keeping those of a killed run with the same options."""
    begun = folder / "begun.json"
    if begun.is_file():
        before = read_json(begun)
        if before["options"] == wanted:
            for leftover in folder.rglob(".*.part"):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            shards = [Shard(folder, number, options) for number in range(before["shards"])]
            done = sum(shard.measures.is_file() for shard in shards)
            logging.info("%s: going on with a stopped run, %d of %d shards are there", folder, done, len(shards))
            return shards
    (folder / MARKER).unlink(missing_ok=True)  # first: a kill during the removal must not leave what looks complete
    shutil.rmtree(folder, ignore_errors=True)
    number = 0
    (folder / "shards").mkdir(parents=True)
    for number, lines in enumerate(groups(cut_lines(data / CUTS), options.shard)):
        write_text(Shard(folder, number, options).cuts, "".join(lines))
    write_json(begun, {"options": wanted, "shards": number + 1})
    return [Shard(folder, n, options) for n in range(number + 1)]


def _finish(folder: Path, shards: list[Shard], wanted: dict[str, Any]) -> None:
    with atomic_path(folder / MEASURES) as temporary, temporary.open("wb") as joined:
        for shard in shards:
            joined.write(shard.measures.read_bytes())
    mark_complete(folder, wanted)
    shutil.rmtree(folder / "shards")
    (folder / "begun.json").unlink()
    total, written, seconds = 0, 0, 0.0
    for measure in read_measures(folder):
        total, seconds = total + 1, seconds + measure.seconds
        written += measure.where is not None
    logging.info("%s: %d of %d utterances written, %.2f hours read", folder, written, total, seconds / 3600)


def _write_fbank(shard: Shard) -> list[Measure]:
    options = shard.options
    extractor = fbank_extractor(options.sampling_rate, options.mel_bins)
    measures = []
    with atomic_path(shard.archive) as temporary, temporary.open("wb") as archive:
        for cut in iterate_cuts(shard.cuts):
            measure, samples = read(cut)
            if samples is not None and usable(measure, options.sampling_rate):
                features = np.asarray(extractor.extract(samples, options.sampling_rate))
                if np.isfinite(features).all():
                    offset = archive.tell() + len(f"{cut.id} ".encode())
                    kaldiio.save_ark(archive, {cut.id: features}, compression_method=COMPRESSIONS[options.compression])
                    measure.where, measure.frames = f"{shard.archive}:{offset}", len(features)
                else:
                    measure.error = "features that are no finite numbers"
            measures.append(measure)
    return measures


def _write_audio(shard: Shard) -> list[Measure]:
    measures = []
    with atomic_directory(shard.audio) as folder:
        for cut in iterate_cuts(shard.cuts):
            measure, samples = read(cut)
            if samples is not None and usable(measure, shard.options.sampling_rate):
                measure.where, measure.frames = _raw(cut, samples, shard, folder), samples.shape[-1]
            measures.append(measure)
    return measures


def _raw(cut: MonoCut, samples: np.ndarray, shard: Shard, folder: Path) -> str:
    source = cut.recording.sources[0].source
    if is_whole(cut) and not cut.recording.transforms and Path(source).suffix.lower() in _KEPT_FORMATS:
        return str(source)
    name = f"{cut.id}.flac"
    soundfile.write(folder / name, samples[0], shard.options.sampling_rate, subtype="PCM_16")
    return str(shard.audio / name)
