"""How the int8 files of an export are made: the options of one quantisation, and those that have a name for users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

from espnet_todm.errors import UserError
from espnet_todm.util.checks import check_choice

DYNAMIC, STATIC = "dynamic", "static"
INT8, SEVEN_BITS, UINT8 = "int8", "7bit", "uint8"
WEIGHTS = (INT8, SEVEN_BITS, UINT8)


@dataclass(frozen=True)
class Recipe:
    """Options of one quantisation to int8.

    Activations are always uint8. x86 CPUs without VNNI add two products of uint8 and int8 in 16 bits, where large ones
    saturate. Products with weights of 7 bits always fit. Products of uint8 and uint8 are computed in other instructions.

    Args:
        static: activation ranges are fixed on calibration features, where a graph takes only features; else each run
            determines them.
        weights: "int8"; "7bit", integers from -64 to 64; or "uint8", with an own zero point.
        per_channel: each output channel of a weight has its own scale.
        smooth: scale outlier channels of activations down and their weights up, see :mod:`espnet_todm.deploy.onnx.rewrite`.
        kept: linear layers that stay in float32, by :func:`espnet_todm.deploy.onnx.quantize.layer_of`.
        blank_penalty: is subtracted from the blank's logit.
    """

    static: bool = False
    weights: str = INT8
    per_channel: bool = False
    smooth: bool = False
    kept: Sequence[str] = ()
    blank_penalty: float = 0.0

    def __post_init__(self) -> None:
        check_choice("weights", self.weights, WEIGHTS)

    def __str__(self) -> str:
        """The recipe in words, such as ``dynamic, 7bit weights per channel, smoothed``."""
        words = [STATIC if self.static else DYNAMIC, f"{self.weights} weights" + " per channel" * self.per_channel]
        words += ["smoothed"] * self.smooth
        if self.kept:
            words.append(f"{len(self.kept)} layer{'s' * (len(self.kept) > 1)} in fp32")
        if self.blank_penalty:
            words.append(f"blank penalty {self.blank_penalty:g}")
        return ", ".join(words)


METHODS = {
    DYNAMIC: Recipe(),
    STATIC: Recipe(static=True, per_channel=True),
    SEVEN_BITS: Recipe(weights=SEVEN_BITS),
    UINT8: Recipe(weights=UINT8),
}


def check_method(method: str, calibration: Optional[Any]) -> None:
    """Raises UserError for an unknown method, or for static without calibration data."""
    check_choice("int8", method, METHODS)
    if METHODS[method].static and calibration is None:
        raise UserError("int8: static needs speech to measure activations on; give --calibrate feats.scp")
