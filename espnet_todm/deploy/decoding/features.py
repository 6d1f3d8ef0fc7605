"""Read model input for decoding, calibration and timing: feature archives or audio, one utterance at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import kaldiio
import soundfile
import torch
from torch import Tensor

from espnet_todm.acoustics import FRAMES_PER_SECOND, SAMPLING_RATE
from espnet_todm.errors import UserError, one_line
from espnet_todm.files import PathLike, read_table


def read_features(scp: PathLike, limit: Optional[int] = None) -> Iterator[tuple[str, Tensor]]:
    """(utterance, input) of a feats.scp (T, F) or a wav.scp (samples,), float32, in the order of the file.

    Raises UserError when the table is missing or empty, a line is a shell pipe, or an entry cannot be read.
    """
    table = read_table(scp)
    if not table:
        raise UserError(f"{scp}: empty; there is nothing to read")
    for utterance, place in list(table.items())[:limit]:
        refuse_pipe(scp, utterance, place)
        try:
            if place.rsplit(".", 1)[-1].lower() in ("wav", "flac", "ogg", "mp3"):
                value = soundfile.read(place, dtype="float32")[0]
            else:
                value = kaldiio.load_mat(place)
        except Exception as error:
            raise UserError(f"{scp}: {utterance} cannot be read from {place} ({one_line(error)})") from None
        yield utterance, torch.as_tensor(value.copy(), dtype=torch.float32)


def refuse_pipe(scp: PathLike, name: str, place: str) -> None:
    """Raises UserError where an entry of a table is a shell command, as Kaldi allows."""
    if place.endswith("|"):
        raise UserError(f"{scp}: {name} is a shell command ({place}); pipes are not run, write the audio out")


def input_table(folder: Path) -> Path:
    """The feats.scp or wav.scp of a dumped set. Raises UserError when it has neither."""
    for name in ("feats.scp", "wav.scp"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: holds neither feats.scp nor wav.scp; run the feature stages first")


def seconds_of(value: Tensor) -> float:
    """Length of a model input: feature frames (T, F), or samples."""
    return len(value) / (FRAMES_PER_SECOND if value.dim() == 2 else SAMPLING_RATE)
