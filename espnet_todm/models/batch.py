"""Inputs and outputs of a subnet's task: batch, step context, posteriors, loss and statistics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Optional

import torch
from torch import Tensor

from espnet_todm.models.autocast import FLOAT32, Autocast
from espnet_todm.models.transducer import Lattice
from espnet_todm.util.host import on_both, places, values

Stats = dict[str, Any]  # name -> value that a step reports


@dataclass(frozen=True)
class StepContext:
    """Mode, precision and training step with which the model runs a batch.

    training: whether SpecAugment, random chunks and dropout are active. step: 0-based number of the training step; in
    validation, of the last training step; None outside of training, where schedules of losses have their final values.
    autocast: the precision. loss_scale: factor on the losses for the backward inside the step (float16). error_rates:
    whether error rates are computed.
    """

    training: bool = False
    step: Optional[int] = None
    autocast: Autocast = FLOAT32
    loss_scale: float = 1.0
    error_rates: bool = False


OUTSIDE = StepContext()  # outside of training: float32, nothing random


@dataclass(frozen=True)
class Batch:
    """The output of ESPnet's collator: speech (B, T, F) or (B, samples), text (B, U) padded with -1, lengths (B,).

    ``context``: applies to all passes of this batch.
    """

    speech: Tensor
    speech_lengths: Tensor
    text: Tensor
    text_lengths: Tensor
    context: StepContext = OUTSIDE

    @cached_property
    def labels(self) -> Tensor:
        """The labels of all utterances, one after the other: (sum of text_lengths,)."""
        return labels_of(self.text, self.text_lengths)

    def rows(self, rows: slice) -> Batch:
        """Some of the utterances. The text is cut to the longest one."""
        texts = on_both(lambda lengths: lengths[rows], self.text_lengths)
        longest = max(values(texts))
        text = on_both(lambda whole: whole[rows, :longest], self.text)
        return replace(
            self, speech=self.speech[rows], speech_lengths=self.speech_lengths[rows], text=text, text_lengths=texts
        )


def shortened(text: Tensor, text_lengths: Tensor) -> Tensor:
    """text (B, U) without the padding that no utterance needs, lengths (B,) -> (B, longest)."""
    longest = max(values(text_lengths))
    return on_both(lambda whole: whole[:, :longest], text)


def labels_of(text: Tensor, text_lengths: Tensor) -> Tensor:
    """text (B, U), lengths (B,) -> labels (sum of lengths,)."""
    valid = torch.arange(text.size(1), device=text.device) < text_lengths.unsqueeze(1)
    return text.reshape(-1)[places(valid.reshape(-1), sum(values(text_lengths)))]


@dataclass(frozen=True)
class Features:
    """The front end's output before SpecAugment: features (B, T, F) and their lengths (B,)."""

    hidden: Tensor
    lengths: Tensor

    def with_hidden(self, hidden: Tensor) -> Features:
        return replace(self, hidden=hidden)


@dataclass(frozen=True)
class Posteriors:
    """Logits of a subnet for a batch, for distillation. A part is None if the model lacks it or does not distil it.

    ctc: CTC logits (B, T, V) in float32. lattice: the transducer's lattice. lengths: (B,) int64, frames of both.
    attention: logits of the attention decoder (B, U, V) in float32, computed with teacher forcing.
    tokens: (B,) int64, number of tokens of each utterance among the U, with the end-of-sentence token.
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
    """Result of one subnet on one batch: task loss, posteriors for distillation, statistics under ESPnet's names."""

    loss: Tensor
    posteriors: Posteriors
    stats: Stats
