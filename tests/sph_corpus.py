"""Makes a corpus in TED-LIUM 2's layout (sph and stm), not TED-LIUM, of noise or of speech in LibriSpeech's layout.

python -m tests.sph_corpus OUTPUT [--librispeech FOLDER] [--splits TRAIN DEV TEST] [--limit N]

writes OUTPUT/TEDLIUM_release2/{train,dev,test}/{sph,stm}/, a NOTICE that says what they were made from, and letters.dic,
which spells each word by its letters in place of phonemes. From LibriSpeech's layout, a speaker's utterances become one
talk.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import soundfile

from espnet_todm.bin._cli import Parser, run
from espnet_todm.data.librispeech import corpus_folder, list_utterances
from espnet_todm.errors import UserError
from espnet_todm.util.evenly import evenly
from tests.tiny_corpus import RATE, noise, words

SPLITS = ("train", "dev", "test")
SOURCES = ("train-mini", "dev-mini", "test-mini")
GAP = 0.4  # seconds of nothing before, between and after the segments
NOTICE = "Made sph + stm for tests: {source}. This is not TED-LIUM.\n"
Piece = tuple[np.ndarray, str]  # samples (T,) and the words said in them


def write_sph(path: Path, samples: np.ndarray, **how: str) -> None:
    """Write samples (T,) as 16-bit NIST sphere audio."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, RATE, **{"format": "NIST", "subtype": "PCM_16", **how})


def write_shorten(path: Path, seconds: float = 1.0) -> None:
    """A NIST sphere header as corpora on old discs have it, and the beginning of a shorten-compressed body."""
    head = f"NIST_1A\n   1024\nsample_count -i {round(seconds * RATE)}\nsample_rate -i {RATE}\nchannel_count -i 1\n"
    head += "sample_n_bytes -i 2\nsample_coding -s26 pcm,embedded-shorten-v2.00\nend_head\n"
    path.write_bytes(head.encode().ljust(1024, b" ") + b"ajkg\x02" + bytes(500))


def stm_line(talk: str, start: float, end: float, text: str, speaker: str = "", label: str = "<o,f0,male>") -> str:
    return f"{talk} 1 {speaker or talk} {start:.2f} {end:.2f} {label} {text}\n"


def dress(text: str, talk: str) -> str:
    """Words as TED-LIUM's stm files have them: "it 's", a pronunciation's number, <sil>, the talk's name at the end."""
    dressed = [re.sub(r"(?<=\w)'", " '", word.strip("'").lower(), count=1) for word in text.split()]
    return f"<sil> {dressed[0]}(2) {' '.join(dressed[1:])} ({talk}-1)"


def plain(text: str) -> str:
    """What a reader should make of ``dress(text)``."""
    return " ".join(word.strip("'").lower() for word in text.split())


def write_talk(split: Path, talk: str, pieces: Sequence[Piece]) -> dict[str, str]:
    """Join pieces to a talk; returns utterance name -> words as a reader should give them."""
    quiet = 0.01 * noise(GAP)
    audio, lines, texts, now = [quiet], [], {}, GAP
    for samples, text in pieces:
        samples = samples[: len(samples) // 160 * 160]  # stm times are in hundredths of a second
        end = now + len(samples) / RATE
        gap = stm_line(talk, now - GAP, now, "ignore_time_segment_in_scoring", "inter_segment_gap", "<o,,unknown>")
        lines += [gap, stm_line(talk, now, end, dress(text, talk))]
        texts[f"{talk}-{round(now * 100):07d}-{round(end * 100):07d}"] = plain(text)
        audio += [samples, quiet]
        now = end + GAP
    write_sph(split / "sph" / f"{talk}.sph", np.concatenate(audio))
    (split / "stm").mkdir(exist_ok=True)
    (split / "stm" / f"{talk}.stm").write_text(";; made for tests\n" + "".join(lines))
    return texts


def noise_pieces(seed: int, segments: int) -> list[Piece]:
    numbers = range(10 * seed, 10 * seed + segments)
    return [(noise(0.5 + 0.1 * (number % 7), number), words(number)) for number in numbers]


def write_split(root: Path, split: str, talks: int = 2, segments: int = 3) -> dict[str, str]:
    """A split of noise; returns utterance name -> words."""
    top, texts = root / "TEDLIUM_release2" / split, {}
    for number in range(talks):
        seed = 100 * sum(map(ord, split)) + number
        texts.update(write_talk(top, f"Speaker{number}_{split}", noise_pieces(seed, segments)))
    write_lexicon(root, texts.values())
    return texts


def write_split_of_speech(root: Path, split: str, librispeech: Path, source: str, limit: int | None) -> dict[str, str]:
    """A split of ``limit`` real utterances of the folder ``source`` of ``librispeech``; returns name -> words."""
    speakers: dict[str, list[Piece]] = {}
    for one in evenly(list_utterances(librispeech, [source]).utterances, limit):
        if one.audio is None or one.text is None:
            raise UserError(
                f"{librispeech / source}: utterance {one.name} lacks its {'text' if one.audio else 'audio'}"
            )
        samples, rate = soundfile.read(one.audio, dtype="float32")
        if rate != RATE or samples.ndim != 1:
            raise UserError(f"{one.audio}: {rate} Hz, {samples.ndim} axes, but mono speech of {RATE} Hz is expected")
        speakers.setdefault(one.speaker, []).append((samples, one.text))
    texts: dict[str, str] = {}
    for speaker, pieces in speakers.items():
        texts.update(write_talk(root / "TEDLIUM_release2" / split, f"Speaker{speaker}_made", pieces))
    write_lexicon(root, texts.values())
    return texts


def write_lexicon(root: Path, texts: Iterable[str]) -> Path:
    """Add words to ``root``/letters.dic, in the form of TED-LIUM's dictionary: letters stand for phonemes."""
    path = root / "letters.dic"
    known = set(path.read_text().splitlines()) if path.exists() else set()
    for word in {word for text in texts for word in text.split()}:
        letters = " ".join(word.replace("'", "").upper())
        known |= {f"{word} {letters}", f"{word}(2) {letters} {letters[-1]}"}
    path.write_text("".join(f"{line}\n" for line in sorted(known)))
    return path


def main(arguments: Sequence[str]) -> None:
    parser = Parser(description=NOTICE.format(source="noise, or speech in LibriSpeech's layout"))
    parser.add_argument("output", type=Path)
    parser.add_argument("--librispeech", type=Path, help="folder that holds LibriSpeech/, or the splits themselves")
    parser.add_argument("--splits", nargs=3, default=SOURCES, help=f"what to make {', '.join(SPLITS)} of")
    parser.add_argument("--limit", type=int, default=24, help="utterances of each split of --librispeech")
    parsed = parser.parse_args(arguments)
    source = "noise"
    if parsed.librispeech:
        speech = corpus_folder(parsed.librispeech)
        source = f"at most {parsed.limit} utterances of each of {', '.join(parsed.splits)} in {speech.name}"
    for split, folder in zip(SPLITS, parsed.splits):
        if parsed.librispeech:
            write_split_of_speech(parsed.output, split, speech, folder, parsed.limit)
        else:
            write_split(parsed.output, split)
    notice = NOTICE.format(source=source)
    (parsed.output / "NOTICE").write_text(notice)
    print(notice, end="")


if __name__ == "__main__":
    run(main)
