"""What goes into a subnet's task and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from torch import Tensor

from espnet_todm.models.transducer import Lattice

Stats = dict[str, Any]  # what a step reports, by name


@dataclass(frozen=True)
class Batch:
    """What ESPnet's collator gives: speech (B, T, F) or (B, samples), text (B, U) padded with -1, lengths (B,)."""

    speech: Tensor
    speech_lengths: Tensor
    text: Tensor
    text_lengths: Tensor


@dataclass(frozen=True)
class Posteriors:
    """What a subnet says of a batch and can teach others: CTC logits (B, T, V) in float32, and a transducer's lattice."""

    ctc: Optional[Tensor]
    lattice: Optional[Lattice]

    def detach(self) -> Posteriors:
        return Posteriors(
            None if self.ctc is None else self.ctc.detach(), None if self.lattice is None else self.lattice.detach()
        )


@dataclass(frozen=True)
class SubnetOutput:
    """One subnet on one batch: the task loss, what it can teach, what to report."""

    loss: Tensor
    posteriors: Posteriors
    stats: Stats
