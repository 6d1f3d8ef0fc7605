"""Stochastic depth: whole layers that a training step goes without, as ESPnet's encoders have it.

``layer_drop_rate`` leaves out a layer and changes nothing else (Fan et al., arXiv 1909.11556). ``stochastic_depth_rate``
also multiplies what a layer adds by 1 / (1 - rate) where it runs (Huang et al., arXiv 1603.09382). All subnets of a step go
without the same layers: so each is still a part of the largest one, which teaches it. The draw depends on the number of
the step alone, so it is the same on every rank and after a resume. What a trainer leaves out of single utterances (``drop``
of a pass) comes on top, in the layers that run.
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
    """What a pass does with layers, by number: those it goes ``without``, and what others' branches are multiplied by."""

    without: frozenset[int] = frozenset()
    scales: Mapping[int, float] = field(default_factory=dict)


WHOLE = Depth()


@dataclass(frozen=True)
class DepthOptions:
    """A probability of being dropped for all layers, and one of stochastic depth for each."""

    layer_drop: float
    stochastic: tuple[float, ...]

    def draw(self, step: Optional[int]) -> Depth:
        """For training step ``step`` (0-based). Where no step is told, as in ESPnet's own training, by torch's generator."""
        if not (self.layer_drop or any(self.stochastic)):
            return WHOLE
        source = random.Random(f"depth {step}" if step is not None else int(torch.randint(2**31, (1,))))
        draws = [(source.random() < self.layer_drop, source.random() < rate) for rate in self.stochastic]
        without = frozenset(layer for layer, draw in enumerate(draws) if any(draw))
        return Depth(without, {layer: 1 / (1 - rate) for layer, rate in enumerate(self.stochastic) if rate})


def depth_options(options: Any, layers: int) -> DepthOptions:
    """What an encoder's options say; some encoders have neither. Raises UserError for what is no probability, and for a list
    of another length."""
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
    """The option of a small model that has these layers, as ESPnet takes it: a list, or a number with a point."""
    if STOCHASTIC_DEPTH not in options:
        return {}
    rates = options[STOCHASTIC_DEPTH]
    listed = isinstance(rates, (list, tuple))
    return {STOCHASTIC_DEPTH: [float(rates[layer]) for layer in layers] if listed else float(rates)}
