"""The int8 files of an export while they are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import numpy as np

from espnet_todm.deploy.onnx.folder import PRECISIONS
from espnet_todm.deploy.onnx.quantize import to_int8
from espnet_todm.deploy.onnx.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Int8Files:
    """Writes int8 files beside the float32 files of an exported folder.

    Attributes:
        folder: with the float32 file of each of ``parts``, and the tokens.
        calibration: part -> features (T, F) of utterances for static quantisation; no entry for other parts.
        peaks: part -> tensor -> largest absolute value of each channel, for recipes that smooth.
    """

    folder: Path
    parts: Sequence[str]
    calibration: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    peaks: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)

    def exact(self, part: str) -> Path:
        """The float32 file of a part."""
        return self.folder / f"{part}{PRECISIONS['fp32']}"

    def path(self, part: str) -> Path:
        """The int8 file of a part."""
        return self.folder / f"{part}{PRECISIONS['int8']}"

    def write(self, recipe: Recipe) -> None:
        """Write the int8 file of each part."""
        for part in self.parts:
            self.write_part(part, recipe)

    def write_part(self, part: str, recipe: Recipe, only: Optional[str] = None) -> None:
        """Write the int8 file of one part. ``only``: the only layer to quantize."""
        to_int8(self.exact(part), self.path(part), recipe, self.calibration.get(part), self.peaks.get(part), only)

    def bytes(self) -> int:
        """Size of all int8 files together."""
        return sum(self.path(part).stat().st_size for part in self.parts)
