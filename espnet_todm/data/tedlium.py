"""TED-LIUM release 2: ``TEDLIUM_release2/<split>/sph/<talk>.sph``, a recording of many segments, and ``stm/<talk>.stm``.

A line of an stm file: talk, channel, speaker, start and end in seconds, a label (``<o,f0,male>``), words. Times, names
and words become what ESPnet's egs2/tedlium2 (and Kaldi's egs/tedlium/s5_r2, where it comes from) makes of them, so that
the reference words are those of published results. lhotse's reader of release 2 (1.33) is not used: it keeps pronunciation
marks and gaps among the words, names utterances by line number, knows .sph alone, and a wrong line ends in a traceback.
Source: A. Rousseau et al., "Enhancing the TED-LIUM corpus with selected data for language modeling and more TED talks",
LREC 2014.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Optional

from espnet_todm.data import listing
from espnet_todm.data.headers import sphere_seconds
from espnet_todm.data.listing import Listing, Utterance, Utterances, files_below, parse_times, split_folder
from espnet_todm.data.sorted_rows import SortedRows
from espnet_todm.errors import UserError
from espnet_todm.util.checks import check_choice, check_number
from espnet_todm.util.files import PathLike, read_lines

INNER = "TEDLIUM_release2"
UNKNOWN_CHOICES = ("keep", "remove")
AUDIO_SUFFIXES = (".wav", ".flac", ".sph")  # a converted file goes before the .sph it was made from
_OVERSHOOT = 0.5  # seconds; see corpus.py
_ROUNDING = 1e-6
_IGNORED = "ignore_time_segment_in_scoring"  # in NIST's own files in capitals
_GAP = "inter_segment_gap"
_FIELDS = "talk, channel, speaker, start, end, <label>, words"
_UNKNOWN = "<unk>"


@dataclass(frozen=True)
class TedliumOptions:
    """unknown: ``keep`` leaves ``<unk>`` among the words, as ESPnet and Kaldi do; ``remove`` takes it out.

    max_overlap: seconds that segments of one talk may share; more is an error.
    """

    unknown: str = "keep"
    max_overlap: float = 0.1

    def __post_init__(self) -> None:
        check_choice("unknown", self.unknown, UNKNOWN_CHOICES)
        check_number("max_overlap", self.max_overlap, at_least=0)


@dataclass(frozen=True)
class Segment:
    """One line of an stm file that is to be recognised. start, end: seconds; where: file and line number."""

    talk: str
    start: float
    end: float
    text: str
    where: str

    @property
    def name(self) -> str:
        """In Kaldi's form: the talk (Kaldi's speaker) and the times, rounded to hundredths of a second."""
        return f"{self.talk}-{round(self.start * 100):07d}-{round(self.end * 100):07d}"


@dataclass
class _Talks:
    """A folder's talks: audio by name, where each name stands in stm files, and rows of segments in the order of talks."""

    audio: dict[str, Path] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    rows: SortedRows = field(default_factory=SortedRows)

    def add(self, one: Segment) -> None:
        self.named.setdefault(one.talk, one.where)
        number = self.numbers.setdefault(one.talk, len(self.numbers))
        times = repr(one.start), repr(one.end)
        self.rows.add(f"{number:09d}", f"{len(self.rows):012d}", one.talk, *times, one.text, one.where)

    def segments(self) -> Iterator[tuple[str, list[Segment]]]:
        """Each talk with its segments in the order of the stm files."""
        for _, rows in groupby(self.rows, key=itemgetter(0)):
            mine = [Segment(talk, float(start), float(end), *rest) for _, _, talk, start, end, *rest in rows]
            yield mine[0].talk, mine


def corpus_folder(corpus: PathLike) -> Path:
    """The folder that holds train, dev and test: ``corpus`` itself or the ``TEDLIUM_release2`` in it."""
    return listing.corpus_folder(corpus, INNER)


def list_utterances(corpus: Path, folders: Sequence[str], options: TedliumOptions = TedliumOptions()) -> Listing:
    """List the segments of ``folders`` of ``corpus``, reading stm files and the headers of sph files.

    Raises UserError for: a missing folder; audio without stm and the other way round; compressed audio; a malformed
    line; a segment that reaches beyond its audio or into another one. A segment without words has the text None.
    """
    rows, sizes = SortedRows(), SortedRows()
    sizes.add(repr(options))
    for folder in folders:
        talks = _scan(corpus, folder, options, sizes)
        for talk, segments in talks.segments():
            audio = talks.audio[talk]
            _check_times(audio, segments, options.max_overlap)
            for one in segments:
                times = repr(one.start), repr(one.end)
                rows.add(one.name, f"{len(rows):012d}", talk, str(audio), one.text, *times, one.where)
    _check_names(rows)
    return Listing(Utterances(lambda: map(_utterance, rows), len(rows)), listing.digest(sizes))


def _check_names(rows: SortedRows) -> None:
    name = ""
    for row in rows:
        if row[0] == name:
            raise UserError(f"{row[-1]}: segment {name} is listed twice, but names must be unique")
        name = row[0]


def _utterance(row: tuple[str, ...]) -> Utterance:
    name, _, talk, audio, text, start, end, _ = row
    return Utterance(name, talk, Path(audio), text or None, float(start), float(end))


def read_stm(path: Path, options: TedliumOptions = TedliumOptions()) -> list[Segment]:
    """The segments of an stm file in its order; ignored ones, comments (``;;``) and doubled lines are left out.

    Raises UserError, naming the line, when one is malformed.
    """
    segments: list[Segment] = []
    before = ""
    for number, line in enumerate(read_lines(path), 1):
        if line == before or not line.strip() or line.lstrip().startswith(";;"):
            continue
        before = line
        segment = _segment(line, f"{path}:{number}", options)
        if segment is not None:
            segments.append(segment)
    return segments


def words_of(label: str, words: Iterable[str], unknown: str = "keep") -> list[str]:
    """The words to recognise, as ESPnet's recipe makes them.

    ``(2)`` (a pronunciation's number), ``<sil>`` and an utterance's name in brackets at the end go; ``{NOISE}`` becomes
    ``[NOISE]``; a word that begins with an apostrophe joins the one before it (``it 's`` -> ``it's``). In ESPnet the
    label counts as the word before the first one, and such a first word is lost with it: the same here.
    """
    line = re.sub(r"\([0-9]\)", "", " ".join(words)).replace("<sil>", "")
    items = [label, *re.sub(r"\([^ ]*\)$", "", line).split()]
    joined: list[str] = []
    position = 0
    while position < len(items):
        together = 2 if items[position + 1 : position + 2] and items[position + 1].startswith("'") else 1
        joined.append("".join(items[position : position + together]))
        position += together
    kept = [word.translate(str.maketrans("{}", "[]")) for word in joined[1:]]
    return [word for word in kept if word != _UNKNOWN] if unknown == "remove" else kept


def _segment(line: str, where: str, options: TedliumOptions) -> Optional[Segment]:
    fields = line.split(maxsplit=6)
    if _IGNORED in line.lower() or _GAP in [field.lower() for field in fields[:3]]:
        return None
    if len(fields) < 6:
        raise UserError(f"{where}: {len(fields)} fields, but an stm line has {_FIELDS}")
    talk, label = fields[0], fields[5]
    start, end = parse_times(fields[3], fields[4], where)
    if not re.fullmatch(r"<[^<>]+>", label) or label == _UNKNOWN:
        raise UserError(f"{where}: label {label!r}, but one like <o,f0,male> is expected before the words")
    words = words_of(label, fields[6:], options.unknown)
    return Segment(talk, start, end, " ".join(words), where)


def _scan(corpus: Path, folder: str, options: TedliumOptions, sizes: SortedRows) -> _Talks:
    top = split_folder(corpus, folder)
    talks = _Talks()
    for path in sorted(files_below(split_folder(top, "sph"), AUDIO_SUFFIXES), key=_rank):
        talks.audio.setdefault(path.stem, path)
    for path in files_below(split_folder(top, "stm"), (".stm",)):
        segments = read_stm(path, options)
        for one in segments:
            talks.add(one)
        if not segments:
            logging.warning("%s: no segment to recognise in it, so the audio of %s is not used", path, path.stem)
            talks.named.setdefault(path.stem, str(path))
        sizes.add(f"{path.relative_to(corpus)} {path.stat().st_size}")
    for path in talks.audio.values():
        sizes.add(f"{path.relative_to(corpus)} {path.stat().st_size}")
    if not talks.audio:
        raise UserError(f"{top / 'sph'}: no audio in it ({', '.join(AUDIO_SUFFIXES)}); an empty split cannot be used")
    for talk, where in talks.named.items():
        if talk not in talks.audio:
            raise UserError(f"{where}: no audio {talk}.sph in {top / 'sph'}")
    for talk, path in talks.audio.items():
        if talk not in talks.named:
            raise UserError(f"{path}: no transcript {talk}.stm in {top / 'stm'}")
    return talks


def _rank(path: Path) -> int:
    """Of audio that is there in several forms the first is taken."""
    return AUDIO_SUFFIXES.index(path.suffix.lower())


def _check_times(audio: Path, segments: list[Segment], max_overlap: float) -> None:
    seconds = sphere_seconds(audio)
    before: Optional[Segment] = None
    for one in sorted(segments, key=lambda segment: (segment.start, segment.end)):
        if seconds is not None and (one.start >= seconds or one.end > seconds + _OVERSHOOT):
            raise UserError(f"{one.where}: segment {one.start:g} to {one.end:g} s, but {audio} has {seconds:.2f} s")
        shared = min(before.end, one.end) - one.start if before else 0.0
        if before and shared > max_overlap + _ROUNDING:
            raise UserError(
                f"{one.where}: shares {shared:.2f} s with the segment of {before.where}, "
                f"but max_overlap is {max_overlap:g} s"
            )
        if before is None or one.end > before.end:
            before = one
