"""Read model input for decoding, calibration and timing: feature archives or audio, one utterance at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

import kaldiio
import soundfile
import torch
from torch import Tensor

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
        if place.endswith("|"):
            raise UserError(f"{scp}: {utterance} is a shell command ({place}); pipes are not run, write the audio out")
        try:
            if place.rsplit(".", 1)[-1].lower() in ("wav", "flac", "ogg", "mp3"):
                value = soundfile.read(place, dtype="float32")[0]
            else:
                value = kaldiio.load_mat(place)
        except Exception as error:
            raise UserError(f"{scp}: {utterance} cannot be read from {place} ({one_line(error)})") from None
        yield utterance, torch.as_tensor(value.copy(), dtype=torch.float32)
