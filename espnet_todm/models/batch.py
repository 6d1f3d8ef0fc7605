"""What goes into a subnet's task and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Optional

from torch import Tensor

from espnet_todm.models.autocast import FLOAT32, Autocast
from espnet_todm.models.transducer import Lattice

Stats = dict[str, Any]  # what a step reports, by name


@dataclass(frozen=True)
class StepContext:
    """How a batch passes through the model, and at which point of a training.

    training: whether SpecAugment, chunks and dropout of outputs are drawn. step: 0-based number of the training step; in
    validation of the last one; None outside of training, where all schedules of losses have come to their end. autocast:
    the precision. loss_scale: what losses are multiplied with for a backward within the step (float16). error_rates: whether
    they are counted.
    """

    training: bool = False
    step: Optional[int] = None
    autocast: Autocast = FLOAT32
    loss_scale: float = 1.0
    error_rates: bool = False


OUTSIDE = StepContext()  # of any training: exact and without anything random


@dataclass(frozen=True)
class Batch:
    """What ESPnet's collator gives: speech (B, T, F) or (B, samples), text (B, U) padded with -1, lengths (B,).

    ``context``: of all passes that this batch makes.
    """

    speech: Tensor
    speech_lengths: Tensor
    text: Tensor
    text_lengths: Tensor
    context: StepContext = OUTSIDE


@dataclass(frozen=True)
class Posteriors:
    """What a subnet says of a batch and can teach others; None is what it has not, or what nobody is to learn.

    ctc: CTC logits (B, T, V) in float32. lattice: a transducer's. lengths: (B,) int64, frames that both have.
    attention: the attention decoder's logits (B, U, V) in float32, each token's behind the right ones before it.
    tokens: (B,) int64, how many of the U are an utterance's, its end included.
    """

    lengths: Tensor
    ctc: Optional[Tensor] = None
    lattice: Optional[Lattice] = None
    attention: Optional[Tensor] = None
    tokens: Optional[Tensor] = None

    def detach(self) -> Posteriors:
        return replace(
            self,
            ctc=None if self.ctc is None else self.ctc.detach(),
            lattice=None if self.lattice is None else self.lattice.detach(),
            attention=None if self.attention is None else self.attention.detach(),
        )


@dataclass(frozen=True)
class SubnetOutput:
    """One subnet on one batch: the task loss, what it can teach, what to report by ESPnet's own names."""

    loss: Tensor
    posteriors: Posteriors
    stats: Stats
