"""A corpus in LibriSpeech's layout made of noise bursts: seconds of audio, so that whole stages run in a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

RATE = 16000
WORDS = ("THE", "CAT", "SAT", "ON", "A", "MAT", "AND", "SANG", "IT'S", "SONG", "TO", "ME")


def noise(seconds: float, seed: int = 0, level: float = 0.1, rate: int = RATE) -> np.ndarray:
    """Noise under a slow envelope, (T,) float32."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    return (
        (level * rng.standard_normal(len(time)) * (0.6 + 0.4 * np.sin(7 * time))).clip(-0.95, 0.95).astype(np.float32)
    )


def words(seed: int) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(rng.choice(WORDS, size=rng.integers(2, 7)))


def write_split(root: Path, split: str, speakers: int = 2, utterances: int = 3, suffix: str = ".flac") -> list[str]:
    """Write ``root``/LibriSpeech/``split`` with one chapter for each speaker; returns the utterances' names."""
    names = []
    base = 100 * sum(map(ord, split))
    for speaker in range(base, base + speakers):
        chapter = root / "LibriSpeech" / split / str(speaker) / "7"
        chapter.mkdir(parents=True)
        rows = []
        for number in range(utterances):
            name = f"{speaker}-7-{number:04d}"
            seed = 1000 * speaker + number
            soundfile.write(chapter / f"{name}{suffix}", noise(0.5 + 0.1 * (seed % 7), seed), RATE, subtype="PCM_16")
            rows.append(f"{name} {words(seed)}\n")
            names.append(name)
        (chapter / f"{speaker}-7.trans.txt").write_text("".join(rows))
    return names


def audio_path(root: Path, split: str, name: str, suffix: str = ".flac") -> Path:
    speaker, chapter, _ = name.split("-")
    return root / "LibriSpeech" / split / speaker / chapter / f"{name}{suffix}"


def truncate(path: Path, share: float = 0.5) -> None:
    """Cut a file's end off, as a broken download does."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
