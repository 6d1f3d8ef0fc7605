"""Read model input for decoding, calibration and timing: feature archives or audio, one utterance at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

import kaldiio
import soundfile
import torch
from torch import Tensor

from espnet_todm.data.archives import refuse_code, refuse_pipe
from espnet_todm.errors import UserError, one_line
from espnet_todm.util.acoustics import FRAMES_PER_SECOND, FRONTEND, SAMPLING_RATE
from espnet_todm.util.files import PathLike, read_table
from espnet_todm.util.units import parse_hertz


def read_features(
    scp: PathLike, limit: Optional[int] = None, rate: Optional[int] = None, channels: Optional[int] = None
) -> Iterator[tuple[str, Tensor]]:
    """(utterance, input) of a feats.scp (T, F) or a wav.scp (samples,), float32, in the order of the file.

    rate, channels: required sampling rate (Hz) and number of channels of audio, if given.
    Raises UserError if the table is missing or empty, a line is a shell pipe, an entry cannot be read, or audio has
    another rate or number of channels.
    """
    refuse_code()
    table = read_table(scp)
    if not table:
        raise UserError(f"{scp}: empty; there is nothing to read")
    for utterance, place in list(table.items())[:limit]:
        refuse_pipe(scp, utterance, place)
        try:
            if place.rsplit(".", 1)[-1].lower() in ("wav", "flac", "ogg", "mp3"):
                value, found = soundfile.read(place, dtype="float32")
                count = 1 if value.ndim == 1 else value.shape[1]
                check_audio(scp, utterance, (found, count), (rate or found, channels or count))
            else:
                value = kaldiio.load_mat(place)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{scp}: {utterance} cannot be read from {place} ({one_line(error)})") from None
        yield utterance, torch.as_tensor(value.copy(), dtype=torch.float32)


def check_audio(scp: PathLike, name: str, found: tuple[int, int], needed: tuple[int, int]) -> None:
    """Raises UserError if audio does not have the required sampling rate (Hz) and number of channels."""
    if found != needed:
        raise UserError(
            f"{scp}: {name} has {found[1]} channel(s) of {found[0]} Hz, but {needed[1]} of {needed[0]} Hz is needed"
        )


def input_table(folder: Path) -> Path:
    """The feats.scp or wav.scp of a dumped set. Raises UserError if it has neither."""
    for name in ("feats.scp", "wav.scp"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: holds neither feats.scp nor wav.scp; run the feature stages first")


def sampling_rate(config: Mapping[str, Any]) -> Optional[int]:
    """Sampling rate (Hz) of the front end in a training configuration; None if none is known.

    Raises UserError for a rate that is no number.
    """
    if config.get("frontend") == FRONTEND:  # whatever its options say, it has only this one
        return SAMPLING_RATE
    rate = (config.get("frontend_conf") or {}).get("fs") if config.get("frontend") else None
    return None if rate is None else parse_hertz("frontend_conf.fs", rate)


def seconds_of(value: Tensor) -> float:
    """Length of a model input in seconds: feature frames (T, F), or samples."""
    return len(value) / (FRAMES_PER_SECOND if value.dim() == 2 else SAMPLING_RATE)
