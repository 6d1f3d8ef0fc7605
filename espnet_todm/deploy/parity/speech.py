"""Real utterances with their transcripts for tests on speech, from wav.scp and text of a data folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import numpy as np
import soundfile

from espnet_todm.data.archives import refuse_pipe
from espnet_todm.data.listing import parse_segment
from espnet_todm.decode.features import check_audio
from espnet_todm.errors import UserError, one_line
from espnet_todm.util.acoustics import SAMPLING_RATE
from espnet_todm.util.evenly import evenly
from espnet_todm.util.files import PathLike, read_table


@dataclass(frozen=True)
class Speech:
    """An utterance: samples (N,) float32 in [-1, 1] at 16 kHz, and the reference transcript."""

    name: str
    samples: np.ndarray
    text: str

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLING_RATE


def read_speech(scp: PathLike, text: PathLike, utterances: Optional[int] = None) -> list[Speech]:
    """Read ``utterances`` utterances (None: all), evenly spread over ``text``.

    If the folder of wav.scp has Kaldi's ``segments``, utterances are parts of recordings.

    Raises UserError when a file is missing or wrong, or the audio is not mono at 16 kHz.
    """
    if utterances is not None and utterances < 1:
        raise UserError(f"utterances: {utterances}, but at least 1 is needed")
    audio, texts = read_table(scp), read_table(text)
    segments = Path(scp).parent / "segments"
    parts = read_table(segments) if segments.is_file() else {}
    names = [name for name in texts if name in (parts or audio)]
    if not names:
        raise UserError(f"{text}: none of its {len(texts)} utterances is in {segments if parts else scp}")
    return [Speech(name, _samples(name, audio, parts, scp), texts[name]) for name in evenly(names, utterances)]


def _samples(name: str, audio: Mapping[str, str], parts: Mapping[str, str], scp: PathLike) -> np.ndarray:
    recording, start, end = name, 0.0, None
    if parts:
        recording, start, end = parse_segment(parts[name], f"{Path(scp).parent / 'segments'}: {name}")
        if recording not in audio:
            raise UserError(f"{scp}: lacks recording {recording}, which {name} is a part of")
    place = audio[recording]
    refuse_pipe(scp, recording, place)
    try:
        with soundfile.SoundFile(place) as file:
            check_audio(scp, recording, (file.samplerate, file.channels), (SAMPLING_RATE, 1))
            file.seek(round(start * SAMPLING_RATE))
            frames = -1 if end is None else round((end - start) * SAMPLING_RATE)
            return np.asarray(file.read(frames, dtype="float32"))
    except (OSError, RuntimeError) as error:  # soundfile raises subclasses of RuntimeError
        raise UserError(f"{scp}: {recording} cannot be read from {place} ({one_line(error)})") from None
