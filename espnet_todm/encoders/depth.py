"""Stochastic depth and layer drop: a training step skips whole layers, as in ESPnet's encoders.

``layer_drop_rate`` skips a layer and changes nothing else (Fan et al., arXiv 1909.11556). ``stochastic_depth_rate`` also
multiplies the residual branches of the layers that run by 1 / (1 - rate) (Huang et al., arXiv 1603.09382). All subnets of
a step skip the same layers, so each remains a part of the largest subnet, its teacher. The draw depends only on the step
number, so it is the same on every rank and after a resume. In the layers that run, a trainer can also drop modules for
single utterances (argument ``drop`` of a pass).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import torch

from espnet_todm.errors import UserError
from espnet_todm.util.checks import check_number

LAYER_DROP, STOCHASTIC_DEPTH = "layer_drop_rate", "stochastic_depth_rate"


@dataclass(frozen=True)
class Depth:
    """Layers that a pass skips (``without``), and factors for the residual branches of the others, by layer number."""

    without: frozenset[int] = frozenset()
    scales: Mapping[int, float] = field(default_factory=dict)


WHOLE = Depth()


@dataclass(frozen=True)
class DepthOptions:
    """Layer drop probability of all layers, and stochastic depth probability of each layer."""

    layer_drop: float
    stochastic: tuple[float, ...]

    def draw(self, step: Optional[int]) -> Depth:
        """Draw for training step ``step`` (0-based). None uses torch's generator, as in ESPnet's own training."""
        if not (self.layer_drop or any(self.stochastic)):
            return WHOLE
        source = random.Random(f"depth {step}" if step is not None else int(torch.randint(2**31, (1,))))
        draws = [(source.random() < self.layer_drop, source.random() < rate) for rate in self.stochastic]
        without = frozenset(layer for layer, draw in enumerate(draws) if any(draw))
        return Depth(without, {layer: 1 / (1 - rate) for layer, rate in enumerate(self.stochastic) if rate})


def depth_options(options: Any, layers: int) -> DepthOptions:
    """Parse an encoder's options, 0 for those that it lacks. Raises UserError for a value that is not a probability, and for
    a list of another length than ``layers``."""
    drop, rates = getattr(options, LAYER_DROP, 0.0), getattr(options, STOCHASTIC_DEPTH, 0.0)
    check_number(LAYER_DROP, drop, at_least=0, below=1)
    listed = list(rates) if isinstance(rates, (list, tuple)) else [rates] * layers
    for rate in listed:
        check_number(STOCHASTIC_DEPTH, rate, at_least=0, below=1)
    if len(listed) != layers:
        raise UserError(
            f"{STOCHASTIC_DEPTH}: has {len(listed)} rates for {layers} blocks; allowed: one, or one a block"
        )
    return DepthOptions(drop, tuple(listed))


def kept_rates(options: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """The option of a small model with these layers, in a type that ESPnet accepts: a list of floats, or a float."""
    if STOCHASTIC_DEPTH not in options:
        return {}
    rates = options[STOCHASTIC_DEPTH]
    listed = isinstance(rates, (list, tuple))
    return {STOCHASTIC_DEPTH: [float(rates[layer]) for layer in layers] if listed else float(rates)}
