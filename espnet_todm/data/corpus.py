"""Stages 1 and 2: from a corpus on disk to data folders, and their speed-perturbed copies.

Stage 1 reads each file's header only. What it cannot list as an utterance (no transcript, no audio, no readable
header) goes to the data folder's ``problems.tsv``, from where stage 4 takes it to the quarantine list.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Callable, Optional, Union

from lhotse import Recording, SupervisionSegment
from lhotse.cut import MonoCut

from espnet_todm.data.audio import in_words, libsndfile
from espnet_todm.data.headers import cut_off
from espnet_todm.data.librispeech import list_utterances
from espnet_todm.data.listing import Reader, Utterance
from espnet_todm.data.pieces import in_one, write_pieces
from espnet_todm.data.tables import (
    PROBLEMS,
    Problem,
    cut_lines,
    cuts_of,
    iterate_cuts,
    read_problems,
    write_data_folder,
    write_problems,
)
from espnet_todm.data.transcripts import plain_texts
from espnet_todm.errors import UserError
from espnet_todm.util.checks import check_number
from espnet_todm.util.evenly import evenly, groups
from espnet_todm.util.files import PathLike, read_lines, to_json
from espnet_todm.util.stage_marker import atomic_stage, fingerprint

_HEADER_THREADS = 8  # headers wait for the disk, not for a core
_HEADERS_AT_ONCE = 4096
# Seconds that a segment may end beyond its audio, then cut off; Kaldi's extract-segments allows as much.
_OVERSHOOT = 0.5


def prepare_split(
    corpus: Path,
    name: str,
    folders: Sequence[str],
    output: PathLike,
    limit: Optional[int] = None,
    reader: Reader = list_utterances,
    **how: Any,
) -> Path:
    """Stage 1: write the data folder ``output``/``name`` from ``folders`` of a corpus, by default in LibriSpeech's layout.

    limit: keep this many utterances, taken at even steps through the sorted list, so that all speakers keep a share.
    ``how`` goes to ``launch`` (jobs, launcher, logs): above PIECE utterances, jobs read the headers.
    Raises UserError for folders that are missing, empty or without transcripts, and when no utterance can be used.
    """
    if limit is not None:
        check_number("limit", limit, at_least=1, whole=True)
    listing = reader(corpus, folders)
    target = Path(output) / name
    options: dict[str, Any] = {"stage": "data", "corpus": str(corpus), "folders": list(folders), "limit": limit}
    with atomic_stage(target, {**options, "files": listing.digest}) as folder:
        if folder is None:
            return target
        total = min(len(listing.utterances), limit or len(listing.utterances))
        if not total:
            raise UserError(f"{name}: no utterance in {', '.join(folders)} of {corpus}; an empty split cannot be used")
        utterances = plain_texts(evenly(listing.utterances, limit), name)
        if in_one(total, how):
            data = write_data_folder(folder, _cuts(utterances), name)
        else:
            lines = (to_json(_plain(one)) + "\n" for one in utterances)
            data = write_pieces(folder, lines, _cuts_of, f"data {name}", how)
        problems = data.problems
        if not data.totals.utterances:
            first = next(iter(problems.first.values()))
            raise UserError(f"{name}: none of {total} utterances can be used; {first.utterance}: {first.detail}")
        problems.write(folder / PROBLEMS)
    faults = f", {len(problems)} with problems ({PROBLEMS})" if len(problems) else ""
    logging.info("%s: %s%s", target, data.totals, faults)
    return target


def perturb_speed(data: PathLike, output: PathLike, factors: Sequence[float], **how: Any) -> Path:
    """Stage 2: write the data folder ``output`` with the utterances of ``data`` and a copy of each at every speed
    factor.

    A factor of 1.1 makes speech 1.1 times as fast (resampling, so the pitch moves along; Ko et al., Interspeech
    2015). The copy of utterance X is named X_sp1.1. Only the manifest is written: audio is resampled when stage 3
    reads it. ``how`` goes to ``launch``, as in ``prepare_split``.
    """
    for factor in factors:
        if not 0.5 <= factor <= 2 or factor == 1:
            raise UserError(
                f"speeds: {factor:g}, but factors lie in [0.5, 2] and are not 1 (the original is always kept)"
            )
    if len(set(factors)) < len(factors) or not factors:
        raise UserError(f"speeds: {list(factors)}, but at least one is needed and each only once")
    options = {"stage": "speed", "factors": list(factors), "input": fingerprint(data)}
    target = Path(output)
    with atomic_stage(target, options) as folder:
        if folder is None:
            return target
        cuts, copies = cuts_of(data), partial(_with_copies, factors=factors)
        if in_one(sum(1 for _ in read_lines(Path(data) / "text")), how):
            made = write_data_folder(folder, copies(cuts), target.name)
        else:
            made = write_pieces(folder, cut_lines(cuts), copies, f"speed {target.name}", how)
        write_problems(folder / PROBLEMS, read_problems(Path(data) / PROBLEMS))
    logging.info("%s: %s", target, made.totals)
    return target


def _plain(utterance: Utterance) -> dict[str, Any]:
    return {**asdict(utterance), "audio": None if utterance.audio is None else str(utterance.audio)}


def _cuts_of(lines: Path) -> Iterator[Union[MonoCut, Problem]]:
    """The cuts of utterances in a file, one in a line of JSON."""
    rows = map(json.loads, read_lines(lines))
    return _cuts(Utterance(**{**row, "audio": row["audio"] and Path(row["audio"])}) for row in rows)


def _cuts(utterances: Iterable[Utterance]) -> Iterator[Union[MonoCut, Problem]]:
    opened = lru_cache(maxsize=64)(_open)  # the segments of a recording come one after another

    def cut(utterance: Utterance) -> Union[MonoCut, Problem]:
        return _cut(utterance, opened)

    with libsndfile(), ThreadPoolExecutor(_HEADER_THREADS) as threads:
        for group in groups(utterances, _HEADERS_AT_ONCE):
            yield from threads.map(cut, group)


def _open(audio: Path, name: str) -> tuple[Recording, Optional[str]]:
    """A recording, and in words what of it is missing."""
    recording = Recording.from_file(audio, name)
    return recording, cut_off(audio, recording.duration)


def _cut(
    utterance: Utterance, opened: Callable[[Path, str], tuple[Recording, Optional[str]]]
) -> Union[MonoCut, Problem]:
    name, audio, start, end = utterance.name, utterance.audio, utterance.start, utterance.end
    if audio is None:
        return Problem(name, "no-audio", "a transcript, but no audio file")
    if utterance.text is None:
        return Problem(name, "no-transcript", f"no words for {audio}")
    try:
        recording, missing = opened(audio, audio.stem if start or end is not None else name)
    except Exception as error:  # whatever the decoder raises, this file cannot be used
        return Problem(name, "unreadable", f"{audio}: {in_words(error)}")
    if missing and (end is None or end > recording.duration):
        return Problem(name, "truncated", f"{audio}: {missing}")
    if not recording.num_samples:
        return Problem(name, "empty", f"{audio}: 0 samples")
    last = recording.duration if end is None else end
    if start >= recording.duration or last > recording.duration + _OVERSHOOT:
        there = f"{recording.duration:.2f} s of audio"
        return Problem(name, "no-audio", f"{audio}: a segment from {start:.2f} to {last:.2f} s, but {there}")
    duration = round(min(last, recording.duration) - start, 8)
    words = SupervisionSegment(
        id=name, recording_id=recording.id, start=0.0, duration=duration, text=utterance.text, speaker=utterance.speaker
    )
    return MonoCut(id=name, start=start, duration=duration, channel=0, supervisions=[words], recording=recording)


def _with_copies(cuts: Path, factors: Sequence[float]) -> Iterator[MonoCut]:
    for cut in iterate_cuts(cuts):
        yield cut
        for factor in factors:
            yield cut.perturb_speed(factor)
