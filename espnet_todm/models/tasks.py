"""The loss of one size: CTC, attention, both, or a transducer; and what a size learns from another one's posteriors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from espnet_todm.encoders.supernet import Front
from espnet_todm.losses.alpha_divergence import Divergence
from espnet_todm.losses.distillation import ctc_frame_distillation, lattice_distillation
from espnet_todm.models.batch import Batch, Posteriors, Stats, SubnetOutput
from espnet_todm.models.odd_utterances import heard
from espnet_todm.models.transducer import Lattice, error_rate

if TYPE_CHECKING:
    from espnet_todm.models.todm import TodmModel


def run_task(
    model: TodmModel, encoded: Tensor, front: Front, batch: Batch, size: str, teacher: Optional[Posteriors] = None
) -> SubnetOutput:
    """ESPnet's loss on the encoder's output (B, T, D) for a size: CTC, attention, their interpolation, or a transducer's
    plus ctc_weight times CTC."""
    stats: Stats = {}
    loss_ctc, logits = _ctc_task(model, encoded, front, batch, size, stats)
    if model.use_transducer_decoder:
        loss, lattice = _transducer_task(model, encoded, front, batch, size, teacher, stats)
        if loss_ctc is not None:
            stats["loss_transducer"], stats["loss_ctc"] = loss.detach(), loss_ctc.detach()
            loss = loss + model.ctc_weight * loss_ctc
        return SubnetOutput(loss, Posteriors(logits, lattice), stats)
    loss_att = None
    if model.decoder is not None:
        loss_att = _attention_task(model, encoded, front, batch, stats)
    parts = ((model.ctc_weight, loss_ctc), (1 - model.ctc_weight, loss_att))
    loss = torch.stack([weight * part for weight, part in parts if part is not None]).sum()
    return SubnetOutput(loss, Posteriors(logits, None), stats)


def _ctc_task(
    model: TodmModel, encoded: Tensor, front: Front, batch: Batch, size: str, stats: Stats
) -> tuple[Optional[Tensor], Optional[Tensor]]:
    """CTC loss and logits (B, T, V) in float32, both None without CTC. Adds the error rate in validation."""
    if model.ctc is None:
        return None, None
    with model.autocast(encoded.device):
        # Log probabilities of whole utterances in bfloat16 would be wrong in the third digit.
        logits = model.output_layer(size)(F.dropout(encoded, model.ctc.dropout_rate, model.training)).float()
    loss = _ctc_loss(model, logits, front.lengths, batch.text, batch.text_lengths)
    if not model.training and model.error_calculator is not None:
        stats["cer_ctc"] = model.error_calculator(logits.argmax(-1).cpu(), batch.text.cpu(), is_ctc=True)
    return loss, logits


def _ctc_loss(model: TodmModel, logits: Tensor, lengths: Tensor, text: Tensor, text_lengths: Tensor) -> Tensor:
    """Logits (B, T, V), text (B, U) -> mean over utterances, to which one without a frame adds nothing."""
    rows, utterances = heard(lengths), len(logits)
    if rows is not None:
        if not len(rows):
            return logits.sum() * 0.0
        logits, lengths, text, text_lengths = (x[rows] for x in (logits, lengths, text, text_lengths))
    labels = torch.cat([row[:length] for row, length in zip(text, text_lengths)])
    loss: Tensor = model.ctc.loss_fn(logits.transpose(0, 1), labels, lengths, text_lengths)
    return loss if rows is None else loss * (len(rows) / utterances)


def _attention_task(model: TodmModel, encoded: Tensor, front: Front, batch: Batch, stats: Stats) -> Tensor:
    """The attention decoder's loss; as in CTC's, an utterance without a frame adds nothing. Adds accuracy and error rates,
    which count it only where there is no other."""
    rows, share = heard(front.lengths), 1.0
    inputs: tuple[Tensor, ...] = encoded, front.lengths, batch.text, batch.text_lengths.clone()
    if rows is not None:
        share = len(rows) / len(encoded)
        inputs = tuple(x[rows] for x in inputs) if len(rows) else inputs
    with model.autocast(encoded.device):
        loss, stats["acc"], stats["cer"], stats["wer"] = model._calc_att_loss(*inputs)
    return loss * share


def _transducer_task(
    model: TodmModel,
    encoded: Tensor,
    front: Front,
    batch: Batch,
    size: str,
    teacher: Optional[Posteriors],
    stats: Stats,
) -> tuple[Tensor, Lattice]:
    task = model.transducer(size)
    text = batch.text, batch.text_lengths
    with model.autocast(encoded.device):
        loss, lattice = task(encoded, front.lengths, *text, model.step, teacher.lattice if teacher else None)
    if not model.training and model.error_calculator is not None:
        rate = error_rate(task.greedy(encoded, front.lengths), *text)
        stats["cer_transducer"] = math.nan if rate is None else rate  # see ErrorRates
    return loss, lattice


def distillation(
    model: TodmModel, teacher: Posteriors, student: Posteriors, front: Front, batch: Batch, divergence: Divergence
) -> Tensor:
    """Divergence of a student from a teacher in nats, averaged over utterances: as :func:`run_task` puts losses together."""
    parts = []
    if student.lattice is not None and teacher.lattice is not None:
        parts.append(_lattice_distillation(model, teacher.lattice, student.lattice, front.lengths, batch, divergence))
    if student.ctc is not None and teacher.ctc is not None:
        loss = ctc_frame_distillation(teacher.ctc, student.ctc, front.lengths, divergence)
        parts.append(model.ctc_weight * loss if parts else loss)
    return torch.stack(parts).sum()


def _lattice_distillation(
    model: TodmModel, teacher: Lattice, student: Lattice, lengths: Tensor, batch: Batch, divergence: Divergence
) -> Tensor:
    """As the transducer's loss: the mean over utterances, to which one without a frame adds nothing."""
    rows, ranges = heard(lengths), student.ranges
    if rows is not None and not len(rows):
        return student.logits.sum() * 0.0
    at, said = teacher.logits_at(ranges), student.logits
    text, text_lengths, share = batch.text, batch.text_lengths, 1.0
    if rows is not None:
        share = len(rows) / len(lengths)
        at, said, text, lengths, text_lengths = (x[rows] for x in (at, said, text, lengths, text_lengths))
        ranges = None if ranges is None else ranges[rows]
    scale = model.transducer_options.distillation_scale
    sizes = text, lengths, text_lengths
    return share * lattice_distillation(at, said, *sizes, divergence, ranges, model.decoder.blank_id, scale)
