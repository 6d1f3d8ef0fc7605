"""The transducer task of a subnet: loss on the full or the pruned lattice, and greedy search for validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional

import torch
from espnet2.asr_transducer.joint_network import JointNetwork
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_todm.errors import UserError
from espnet_todm.losses.distillation import SCALES
from espnet_todm.losses.transducer import pruned_loss, transducer_loss
from espnet_todm.losses.transducer_backends import FULL, PRUNED, pick_backend
from espnet_todm.losses.transducer_pruning import check_scales, gather_ranges, prune_ranges, simple_loss
from espnet_todm.models.greedy import greedy_search
from espnet_todm.precision import at_least_float32
from espnet_todm.util.checks import check_choice, check_number
from espnet_todm.util.host import on_both, values


@dataclass(frozen=True)
class TransducerOptions:
    """``model_conf: transducer_conf``.

    Args:
        backend: backend of the loss: "auto", "torch", "torchaudio" or "k2".
        prune_range: number of labels per frame in the pruned lattice (Kuang et al., arXiv 2206.13236); 0: full lattice.
        simple_weight: weight of the simple loss, which determines the pruning ranges. The pruned loss has weight 1.
        am_scale, lm_scale: share of the encoder-only and of the predictor-only posteriors in the simple loss.
        warmup_steps: number of first steps, in which the simple loss falls from weight 1 and the pruned rises from 0.1.
        reuse_ranges: subnets use the pruning ranges of the max subnet and have no simple loss.
        distillation_scale: "path" or "lattice", see :func:`espnet_todm.losses.distillation.lattice_distillation`.

    Raises:
        UserError: a value is not allowed, or the backend is not installed.
    """

    backend: str = "auto"
    prune_range: int = 0
    simple_weight: float = 0.5
    am_scale: float = 0.0
    lm_scale: float = 0.25
    warmup_steps: int = 0
    reuse_ranges: bool = True
    distillation_scale: str = "path"

    def __post_init__(self) -> None:
        where = "transducer_conf: "
        check_number(f"{where}prune_range", self.prune_range, at_least=0, whole=True)
        pick_backend(self.backend, PRUNED if self.prune_range else FULL, torch.device("cpu"))
        check_choice(f"{where}distillation_scale", self.distillation_scale, SCALES)
        if self.prune_range == 1:
            raise UserError(
                f"{where}prune_range: 1 leaves no way from one label to the next; allowed: 0, or 2 and more"
            )
        for key in ("simple_weight", "am_scale", "lm_scale"):
            check_number(where + key, getattr(self, key), at_least=0, at_most=1)
        check_scales(self.am_scale, self.lm_scale)
        check_number(f"{where}warmup_steps", self.warmup_steps, at_least=0, whole=True)

    def weights(self, step: Optional[int]) -> tuple[float, float]:
        """Weights of the simple and of the pruned loss in a step. None means after the warm-up."""
        if step is None or step >= self.warmup_steps:
            return self.simple_weight, 1.0
        done = step / self.warmup_steps
        return 1.0 - done * (1.0 - self.simple_weight), 0.1 + 0.9 * done


class SimpleJoint(nn.Module):
    """The simple joiner, the sum of two projections to the vocabulary. It determines the pruning ranges in training."""

    def __init__(self, encoder_size: int, decoder_size: int, vocabulary: int) -> None:
        super().__init__()
        self.am = nn.Linear(encoder_size, vocabulary)
        self.lm = nn.Linear(decoder_size, vocabulary)


@dataclass(frozen=True)
class Lattice:
    """Logits of a subnet's joiner at the computed nodes of the lattice.

    ``logits``: (B, T, U+1, V), or (B, T, S, V) with ``ranges`` (B, T, S). ``at`` computes the logits at other ranges.
    """

    logits: Tensor
    ranges: Optional[Tensor]
    at: Callable[[Tensor], Tensor]

    def detach(self) -> Lattice:
        return Lattice(self.logits.detach(), self.ranges, torch.no_grad()(self.at))

    def logits_at(self, ranges: Optional[Tensor]) -> Tensor:
        """Logits at the nodes of ``ranges``. Its own ranges, and None, give the stored logits."""
        return self.logits if ranges is None or ranges is self.ranges else self.at(ranges)


@dataclass(frozen=True)
class TransducerTask:
    """Computes the transducer loss from an encoder's output. The modules belong to the calling model."""

    decoder: Any  # (B, L) labels -> (B, L, D): ESPnet's TransducerDecoder, or a StatelessDecoder
    joint: JointNetwork
    simple: Optional[SimpleJoint]
    options: TransducerOptions

    def __call__(
        self,
        encoded: Tensor,
        lengths: Tensor,
        text: Tensor,
        text_lengths: Tensor,
        step: Optional[int],
        teacher: Optional[Lattice],
    ) -> tuple[Tensor, Lattice]:
        """encoded (B, T, D), text (B, U) -> loss in nats, averaged over utterances, and the lattice.

        An utterance without a frame has no alignment and loss 0. ``teacher`` provides the pruning ranges.
        """
        some = lengths > 0
        # An utterance without frames must not widen others' ranges.
        sizes = on_both(at_least_one, lengths), on_both(_of_some, text_lengths, lengths)
        labels = on_both(_without_padding, text)
        self.decoder.set_device(encoded.device)
        predicted = self.decoder(F.pad(labels, (1, 0), value=self.decoder.blank_id))
        am, lm = self.joint.lin_enc(encoded), self.joint.lin_dec(predicted)

        def at(ranges: Tensor) -> Tensor:
            return self.joint(*gather_ranges(am, lm, ranges), no_projection=True)

        if self.simple is None:
            logits = self.joint(am.unsqueeze(2), lm.unsqueeze(1), no_projection=True)
            losses = transducer_loss(logits, labels, *sizes, self.decoder.blank_id, self.options.backend)
            return _mean(losses, some), Lattice(logits, None, at)
        simple_weight, weight = self.options.weights(step)
        if self.options.reuse_ranges and teacher is not None and teacher.ranges is not None:
            ranges, extra = teacher.ranges, torch.zeros((), device=encoded.device)
        else:
            parts = at_least_float32(self.simple.am(encoded)), at_least_float32(self.simple.lm(predicted))
            scales = self.options.am_scale, self.options.lm_scale
            simple, occupation = simple_loss(*parts, labels, *sizes, self.decoder.blank_id, *scales)
            ranges = prune_ranges(occupation, *sizes, self.options.prune_range)
            extra = simple_weight * _mean(simple, some)
        logits = at(ranges)
        losses = pruned_loss(logits, labels, ranges, *sizes, self.decoder.blank_id, self.options.backend)
        return extra + weight * _mean(losses, some), Lattice(logits, ranges, at)

    def greedy(self, encoded: Tensor, lengths: Tensor) -> list[list[int]]:
        """encoded (B, T, D), any float dtype -> labels of each utterance, at most one per frame."""
        return greedy_search(self.decoder, self.joint, encoded.float(), lengths)


def at_least_one(lengths: Tensor) -> Tensor:
    """Lengths (B,), of which those below 1 are set to 1."""
    return lengths.clamp(min=1)


def _of_some(text_lengths: Tensor, lengths: Tensor) -> Tensor:
    return text_lengths * (lengths > 0)


def _without_padding(text: Tensor) -> Tensor:
    return text.clamp(min=0)


def error_rate(hypotheses: Sequence[Sequence[int]], text: Tensor, text_lengths: Tensor) -> Optional[float]:
    """Edit distance to the text (B, U), divided by the number of labels in the text; None if it has no labels."""
    import editdistance  # a dependency of ESPnet's error rates

    references = [row[:length] for row, length in zip(values(text), values(text_lengths))]
    total = sum(map(len, references))
    edits = sum(editdistance.eval(list(ours), theirs) for ours, theirs in zip(hypotheses, references))
    return edits / total if total else None


def _mean(losses: Tensor, some: Tensor) -> Tensor:
    return torch.where(some, losses, torch.zeros_like(losses)).sum() / max(len(losses), 1)
