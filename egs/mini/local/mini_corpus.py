"""The mini corpus: synthesised speech in LibriSpeech's layout, for trying the recipes without a corpus or a network.

Voices (espeak-ng variants) and sentences of the dev and test splits are ones that the train split does not have.
Beside the splits lie mini_corpus.json (options and statistics), SPEAKERS.TXT, and utterances.tsv (noise, SNR, ...).
"""

from __future__ import annotations

import logging
import multiprocessing
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import mini_speech as speech
import numpy as np
import soundfile
from mini_text import SPLITS, make_sentences
from tqdm import tqdm

from espnet_todm.errors import UserError
from espnet_todm.util.acoustics import SAMPLING_RATE
from espnet_todm.util.files import PathLike, atomic_directory, read_json, write_json

FORMAT = "espnet_todm.mini_corpus/1"
FOLDER = "LibriSpeech"
MARKER = "mini_corpus.json"
# Every sentence lasts longer than this, in seconds; it bounds how many sentences a speaker can need.
_SHORTEST = 0.8


@dataclass(frozen=True)
class MiniOptions:
    """What a mini corpus depends on: the same options give the same bytes.

    Args:
        train_minutes, dev_minutes, test_minutes: audio per split; 0 leaves a split out.
        speaker_seconds: audio per speaker, so fewer seconds mean more speakers.
        open_share: share of open text among the sentences, in [0, 1]; the rest are commands. More is harder.
        vocabulary_share: share of the sentence patterns and of each long word list that is used, in (0, 1]. More is harder.
        snr_low, snr_high: range of the signal-to-noise ratio in dB, drawn uniformly. Lower is harder.
        seed: of everything random.
    """

    train_minutes: float = 33.0
    dev_minutes: float = 4.0
    test_minutes: float = 6.0
    speaker_seconds: float = 16.0
    open_share: float = 0.1
    vocabulary_share: float = 0.5
    snr_low: float = 5.0
    snr_high: float = 25.0
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("train_minutes", "dev_minutes", "test_minutes"):
            _require(0 <= getattr(self, name) <= 6000, name, getattr(self, name), "from 0 to 6000")
        _require(1 <= self.speaker_seconds <= 600, "speaker_seconds", self.speaker_seconds, "from 1 to 600")
        _require(0 <= self.open_share <= 1, "open_share", self.open_share, "from 0 to 1")
        _require(0 < self.vocabulary_share <= 1, "vocabulary_share", self.vocabulary_share, "above 0, up to 1")
        _require(-20 <= self.snr_low <= self.snr_high, "snr_low", self.snr_low, f"from -20 to snr_high={self.snr_high}")
        _require(self.snr_high <= 100, "snr_high", self.snr_high, "up to 100")
        _require(0 <= self.seed < 2**31, "seed", self.seed, "from 0 to 2147483647")


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise UserError(f"{name}={value}: allowed is {allowed}")


@dataclass(frozen=True)
class SpeakerPlan:
    """All that one speaker's process needs to know."""

    split: str
    speaker: int
    voice: speech.Voice
    seconds: float
    sentences: tuple[str, ...]
    babblers: tuple[speech.Voice, ...]
    snr: tuple[float, float]
    seed: int


@dataclass(frozen=True)
class Utterance:
    """A line of ``utterances.tsv``: SNR in dB, level as asked in dBFS, seconds of the file."""

    utterance: str
    split: str
    voice: str
    sex: str
    noise: str
    snr: float
    level: float
    speed: float
    seconds: float
    text: str


def make_mini_corpus(output: PathLike, options: MiniOptions, nj: int = 1) -> Path:
    """Write the corpus ``output``/LibriSpeech, whole or not at all, and return its path.

    An existing one with the same options stays as it is, one with other options is replaced.

    Raises:
        UserError: espeakng-loader is missing; the folder there is no mini corpus; too few sentences for the minutes.
    """
    _require(nj >= 1, "nj", nj, "1 or more")
    loader = speech.import_espeak()
    folder = Path(output) / FOLDER
    wanted = {"format": FORMAT, "options": asdict(options), "library": Path(loader.get_library_path()).resolve().name}
    if folder.exists():
        if not (folder / MARKER).is_file():
            raise UserError(f"{folder} is no mini corpus (it has no {MARKER}); allowed is another output folder")
        found = read_json(folder / MARKER)
        if all(found.get(key) == value for key, value in wanted.items()):
            logging.info("%s is there with these options: nothing to do", folder)
            return folder
    plans = [plan for split in SPLITS for plan in plan_split(split, options)]
    for left in folder.parent.glob(f".{FOLDER}.*.part"):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    try:
        with atomic_directory(folder) as temporary:
            utterances = list(_synthesize(plans, temporary, nj))
            _write_tables(temporary, plans, utterances)
            write_json(temporary / MARKER, {**wanted, "splits": statistics(utterances)})
    except OSError as error:
        raise UserError(f"output={output}: cannot be written ({error})") from None
    return folder


def plan_split(split: str, options: MiniOptions) -> list[SpeakerPlan]:
    """Speakers of a split, each with a voice of the split and sentences that no other speaker has."""
    total, place = 60 * float(getattr(options, f"{split}_minutes")), SPLITS.index(split)
    if total == 0:
        return []
    rng = np.random.default_rng([options.seed, place])
    speakers = max(1, round(total / options.speaker_seconds))
    each = 2 + int(total / speakers / _SHORTEST)
    sentences = make_sentences(split, speakers * each, rng, options.open_share, options.vocabulary_share)
    if len(sentences) < speakers * each:
        raise UserError(
            f"{split}_minutes={total / 60:g}: with vocabulary_share={options.vocabulary_share} and open_share="
            f"{options.open_share} there are too few sentences; allowed are fewer minutes or larger shares"
        )
    voices = speech.draw_voices(split, speakers, rng)
    first = (place + 1) * (1000 if speakers <= 1000 else 1000000)
    return [
        SpeakerPlan(
            split=split,
            speaker=first + index,
            voice=voices[index],
            seconds=total / speakers,
            sentences=tuple(sentences[index * each : (index + 1) * each]),
            babblers=tuple(voices[other] for other in rng.integers(speakers, size=5)),
            snr=(options.snr_low, options.snr_high),
            seed=options.seed,
        )
        for index in range(speakers)
    ]


def _synthesize(plans: Sequence[SpeakerPlan], folder: Path, nj: int) -> Iterator[Utterance]:
    """Run each plan in a process of its own, ``nj`` at a time, and yield the utterances in the order of the plans."""
    context = multiprocessing.get_context("fork")
    running: dict[Any, tuple[int, Any]] = {}
    done: dict[int, list[Utterance]] = {}
    try:
        with tqdm(total=len(plans), desc="speakers", unit="speaker", disable=None) as progress:
            for place in range(len(plans)):
                while place not in done:
                    started = len(done) + len(running)
                    if started < len(plans) and len(running) < nj:
                        receiver, sender = context.Pipe(duplex=False)
                        process = context.Process(target=_speaker_process, args=(plans[started], folder, sender))
                        process.start()
                        sender.close()
                        running[receiver] = (started, process)
                        continue
                    for ready in wait(list(running)):
                        finished, process = running.pop(ready)
                        done[finished] = _result(ready, process, plans[finished])
                        progress.update()
                yield from done[place]
    finally:
        for _, process in running.values():
            process.terminate()


def _speaker_process(plan: SpeakerPlan, folder: Path, sender: Any) -> None:
    """Send the speaker's utterances, or the one line that says why there are none."""
    try:
        sender.send(speak(plan, folder))
    except (UserError, OSError) as error:
        sender.send(str(error))


def _result(receiver: Any, process: Any, plan: SpeakerPlan) -> list[Utterance]:
    try:
        answer = receiver.recv()
    except EOFError:
        answer = None
    process.join()
    if isinstance(answer, list):
        return answer
    raise UserError(f"speaker {plan.speaker} ({plan.voice.name}): {answer or f'ended with {process.exitcode}'}")


def speak(plan: SpeakerPlan, folder: Path) -> list[Utterance]:
    """Write one speaker's chapter below ``folder``. To be called in a fresh process (see ``mini_speech``)."""
    rng = np.random.default_rng([plan.seed, plan.speaker])
    chapter = 100000 + plan.speaker
    place = folder / plan.split / str(plan.speaker) / str(chapter)
    place.mkdir(parents=True)
    utterances: list[Utterance] = []
    with speech.Synthesizer(seed=int(rng.integers(2**31))) as synthesizer:
        murmur = _murmur(plan, synthesizer, rng)
        for number, sentence in enumerate(plan.sentences):
            if sum(utterance.seconds for utterance in utterances) >= plan.seconds:
                break
            name = f"{plan.speaker}-{chapter}-{number:04d}"
            samples, facts = _utterance(sentence, plan, synthesizer, murmur, rng)
            soundfile.write(place / f"{name}.flac", samples, SAMPLING_RATE, subtype="PCM_16")
            who = (name, plan.split, plan.voice.name, plan.voice.sex)
            utterances.append(Utterance(*who, **facts, text=sentence.upper()))
    lines = "".join(f"{utterance.utterance} {utterance.text}\n" for utterance in utterances)
    (place / f"{plan.speaker}-{chapter}.trans.txt").write_text(lines, encoding="utf-8")
    return utterances


def _murmur(plan: SpeakerPlan, synthesizer: speech.Synthesizer, rng: np.random.Generator) -> list[np.ndarray]:
    """Other voices of the same split, each saying two of its sentences: what babble is made of."""
    return [
        speech.resample(synthesizer.speak(" ".join(rng.choice(plan.sentences, 2)), voice, 170, voice.pitch, 50), 1.0)
        for voice in plan.babblers
    ]


def _utterance(
    sentence: str,
    plan: SpeakerPlan,
    synthesizer: speech.Synthesizer,
    murmur: list[np.ndarray],
    rng: np.random.Generator,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Samples (N,) float64 of a noisy utterance at 16 kHz, and what was done to it."""
    voice = plan.voice
    rate, pitch = voice.words_per_minute + int(rng.integers(-12, 13)), voice.pitch + int(rng.integers(-6, 7))
    speed = round(rng.uniform(0.95, 1.05) * speech.SPEED_STEPS) / speech.SPEED_STEPS
    clean = speech.resample(synthesizer.speak(sentence, voice, rate, pitch, int(rng.integers(35, 66))), speed)
    lead, tail = (int(SAMPLING_RATE * seconds) for seconds in rng.uniform(0.05, 0.25, size=2))
    length = lead + len(clean) + tail
    kind = speech.NOISES[rng.integers(len(speech.NOISES))]
    noise = speech.babble(murmur, length, rng) if kind == "babble" else speech.coloured_noise(kind, length, rng)
    snr, level = round(float(rng.uniform(*plan.snr)), 2), round(float(rng.uniform(-32, -20)), 2)
    samples = speech.mix(clean, noise, snr, level, lead)
    seconds = round(length / SAMPLING_RATE, 3)
    return samples, {"noise": kind, "snr": snr, "level": level, "speed": round(speed, 3), "seconds": seconds}


def statistics(utterances: Sequence[Utterance]) -> dict[str, dict[str, Any]]:
    """Per split: utterances, speakers, minutes, words, different words, and sentences that also stand in train."""
    train = {utterance.text for utterance in utterances if utterance.split == "train"}
    table = {}
    for split in SPLITS:
        own = [utterance for utterance in utterances if utterance.split == split]
        words = " ".join(utterance.text for utterance in own).split()
        table[split] = {
            "utterances": len(own),
            "speakers": len({utterance.utterance.split("-")[0] for utterance in own}),
            "minutes": round(sum(utterance.seconds for utterance in own) / 60, 2),
            "words": len(words),
            "different_words": len(set(words)),
            "sentences_in_train": sum(utterance.text in train for utterance in own),
        }
    return table


def _write_tables(folder: Path, plans: Sequence[SpeakerPlan], utterances: Sequence[Utterance]) -> None:
    """SPEAKERS.TXT in LibriSpeech's form, and utterances.tsv with one column for each fact."""
    rows = [f"{p.speaker} | {p.voice.sex} | {p.split} | {p.seconds / 60:.2f} | {p.voice.name}" for p in plans]
    (folder / "SPEAKERS.TXT").write_text("\n".join([";ID|SEX|SUBSET|MINUTES|NAME", *rows]) + "\n", encoding="utf-8")
    table = [Utterance.__dataclass_fields__, *(asdict(utterance).values() for utterance in utterances)]
    lines = ["\t".join(map(str, row)) + "\n" for row in table]
    (folder / "utterances.tsv").write_text("".join(lines), encoding="utf-8")
