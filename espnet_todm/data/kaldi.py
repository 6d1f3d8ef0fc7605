"""Data folders as Kaldi and ESPnet make them: ``<corpus>/<split>/`` with ``wav.scp`` and ``text``, and with ``segments`` and
``utt2spk`` where there are such.

An entry of ``wav.scp`` is the path of an audio file. A relative one begins at the first folder in which the first entry is
found: the present one, the split, or one above it (ESPnet's recipes write paths that begin two above).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from espnet_todm.data import listing
from espnet_todm.data.archives import refuse_pipe
from espnet_todm.data.listing import Listing, Utterance, Utterances, parse_segment, split_folder
from espnet_todm.data.sorted_rows import SortedRows
from espnet_todm.errors import UserError
from espnet_todm.util.files import hash_file, read_lines, split_key

WAV, TEXT, SEGMENTS, SPEAKERS = "wav.scp", "text", "segments", "utt2spk"
_NEEDED, _OPTIONAL = (WAV, TEXT), (SEGMENTS, SPEAKERS)


def list_utterances(corpus: Path, folders: Sequence[str]) -> Listing:
    """List the utterances of ``folders`` of ``corpus`` without opening the audio.

    An utterance that only one of the tables has gets no audio or no text. Without ``utt2spk``, each is its own speaker.
    Raises UserError for a missing folder or table, an utterance that is listed twice, an entry that is a command or lies in
    an archive, a malformed segment, and a segment of a recording that is not there.
    """
    rows, tables = SortedRows(), SortedRows()
    for folder in folders:
        top = split_folder(corpus, folder)
        for name in (*_NEEDED, *(name for name in _OPTIONAL if (top / name).is_file())):
            if not (top / name).is_file():
                raise UserError(f"{top}: no {name} in it; a data folder has {' and '.join(_NEEDED)}")
            tables.add(f"{folder}/{name} {hash_file(top / name)}")
        _scan(top, rows)
    return Listing(Utterances(lambda: map(_utterance, _by_name(rows)), _count(rows)), listing.digest(tables))


def _scan(top: Path, rows: SortedRows) -> None:
    """Add rows (utterance, table, file, values ...): what each table says about each utterance."""
    entries = _entries(top / WAV)
    if (top / SEGMENTS).is_file():
        recordings = dict(entries)
        for name, value in _rows(top / SEGMENTS):
            where = f"{top / SEGMENTS}: {name}"
            recording, start, end = parse_segment(value, where)
            if recording not in recordings:
                raise UserError(f"{where}: its recording {recording} is not in {WAV}")
            rows.add(name, WAV, str(top), recordings[recording], repr(start), "" if end is None else repr(end))
    else:
        for name, place in entries:
            rows.add(name, WAV, str(top), place, "0.0", "")
    for table in (TEXT, SPEAKERS):
        if (top / table).is_file():
            for name, value in _rows(top / table):
                rows.add(name, table, str(top), value.strip())


def _entries(scp: Path) -> Iterator[tuple[str, str]]:
    """Recordings and the paths of their files. Raises UserError for an entry that is none."""
    base = None
    for name, place in _rows(scp):
        refuse_pipe(scp, name, place)
        if re.search(r"\.ark:\d+$", place):
            raise UserError(
                f"{scp}: {name}: {place} lies in an archive; give audio files (asr.sh: --audio_format flac)"
            )
        base = _base(scp, name, place) if base is None else base
        yield name, str(base / place)


def _base(scp: Path, name: str, place: str) -> Path:
    if Path(place).is_absolute():
        return Path()
    for folder in (Path(), scp.parent, *scp.parent.absolute().parents):
        if (folder / place).is_file():
            return folder
    raise UserError(f"{scp}: {name}: {place} is neither in {scp.parent} nor in a folder above it")


def _rows(path: Path) -> Iterator[tuple[str, str]]:
    return (row for row in map(split_key, read_lines(path)) if row[0])


def _by_name(rows: SortedRows) -> Iterator[dict[str, tuple[str, ...]]]:
    """What the tables say about each utterance that has audio or text, by the table's name."""
    for name, group in groupby(rows, key=itemgetter(0)):
        found: dict[str, tuple[str, ...]] = {}
        for row in group:
            if row[1] in found:
                raise UserError(f"{Path(row[2]) / row[1]}: {name} is listed twice, but names must be unique")
            found[row[1]] = row
        if WAV in found or TEXT in found:
            yield found


def _count(rows: SortedRows) -> int:
    return sum(1 for _ in _by_name(rows))


def _utterance(found: dict[str, tuple[str, ...]]) -> Utterance:
    name = next(iter(found.values()))[0]
    speaker = found[SPEAKERS][3] if SPEAKERS in found else name
    text = found[TEXT][3] if TEXT in found else ""
    audio, start, end = found[WAV][3:] if WAV in found else ("", "0.0", "")
    return Utterance(
        name, speaker, Path(audio) if audio else None, text or None, float(start), float(end) if end else None
    )
