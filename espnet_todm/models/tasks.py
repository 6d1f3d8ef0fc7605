"""The loss of one size: CTC, attention, both, or a transducer; and what a size learns from another one's posteriors.

Statistics have ESPnet's own names, those of :func:`espnet_todm.models.reports.stock_names`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Optional

import torch
from espnet.nets.pytorch_backend.nets_utils import th_accuracy
from espnet.nets.pytorch_backend.transformer.add_sos_eos import add_sos_eos
from torch import Tensor
from torch.nn import functional as F

from espnet_todm.encoders.supernet import Front, length_mask
from espnet_todm.losses.alpha_divergence import Divergence
from espnet_todm.losses.distillation import ctc_frame_distillation, lattice_distillation, token_distillation
from espnet_todm.models.batch import Batch, Posteriors, Stats, SubnetOutput
from espnet_todm.models.error_rates import attention_error_rates, ctc_error_rate, transducer_error_rates
from espnet_todm.models.transducer import Lattice

if TYPE_CHECKING:
    from espnet_todm.models.todm import TodmModel


def run_task(
    model: TodmModel, encoded: Tensor, front: Front, batch: Batch, size: str, teacher: Optional[Posteriors] = None
) -> SubnetOutput:
    """ESPnet's loss on the encoder's output (B, T, D) for a size: CTC, attention, their interpolation, or a transducer's
    plus ctc_weight times CTC."""
    encoded, front = after_encoder(model, encoded, front)
    stats: Stats = {}
    loss_ctc, logits = _ctc_task(model, encoded, front, batch, size, stats)
    said = Posteriors(front.lengths, logits)
    if model.use_transducer_decoder:
        loss, lattice = _transducer_task(model, encoded, front, batch, size, teacher, stats)
        loss = loss if loss_ctc is None else loss + model.ctc_weight * loss_ctc
        return SubnetOutput(loss, replace(said, lattice=lattice), stats)
    loss_att = None
    if model.decoder is not None:
        loss_att, attention, tokens = _attention_task(model, encoded, front, batch, stats)
        said = replace(said, attention=attention, tokens=tokens) if model.distils_attention else said
    parts = ((model.ctc_weight, loss_ctc), (1 - model.ctc_weight, loss_att))
    loss = torch.stack([weight * part for weight, part in parts if part is not None]).sum()
    return SubnetOutput(loss, said, stats)


def after_encoder(model: TodmModel, encoded: Tensor, front: Front) -> tuple[Tensor, Front]:
    """What a post-encoder makes of the encoder's output (B, T, D), and the front with the lengths that it leaves."""
    if model.postencoder is None:
        return encoded, front
    with model.autocast(encoded.device):
        missing = getattr(model.postencoder, "length_adaptor_ratio", 1) - encoded.size(1)
        encoded, lengths = model.postencoder(F.pad(encoded, (0, 0, 0, max(0, missing))), front.lengths)
    return encoded, replace(front, lengths=lengths, mask=length_mask(lengths, encoded.size(1)), visible=None)


def _ctc_task(
    model: TodmModel, encoded: Tensor, front: Front, batch: Batch, size: str, stats: Stats
) -> tuple[Optional[Tensor], Optional[Tensor]]:
    """CTC loss and logits (B, T, V) in float32, both None without CTC."""
    if model.ctc is None:
        return None, None
    with model.autocast(encoded.device):
        # Log probabilities of whole utterances in bfloat16 would be wrong in the third digit.
        logits = model.output_layer(size)(F.dropout(encoded, model.ctc.dropout_rate, model.training)).float()
    labels = torch.cat([row[:length] for row, length in zip(batch.text, batch.text_lengths)])
    loss = model.ctc.loss_fn(logits.transpose(0, 1), labels, front.lengths, batch.text_lengths)
    stats["loss_ctc"] = loss.detach()
    if not model.training and model.error_calculator is not None:
        stats["cer_ctc"] = ctc_error_rate(model.error_calculator, logits, batch.text)
    return loss, logits


def _attention_task(
    model: TodmModel, encoded: Tensor, front: Front, batch: Batch, stats: Stats
) -> tuple[Tensor, Tensor, Tensor]:
    """The decoder's loss, its logits (B, U, V) in float32 and how many tokens each utterance has, its end included."""
    text, text_lengths = batch.text, batch.text_lengths
    if getattr(model, "lang_token_id", None) is not None:  # ESPnet 202402 has none
        language = model.lang_token_id.repeat(len(text), 1).to(text)
        text, text_lengths = torch.cat([language, text], dim=1), text_lengths + 1
    before, following = add_sos_eos(text, model.sos, model.eos, model.ignore_id)
    with model.autocast(encoded.device):
        logits, _ = model.decoder(encoded, front.lengths, before, text_lengths + 1)
        loss = model.criterion_att(logits, following)
        stats["loss_att"] = loss.detach()
        stats["acc"] = th_accuracy(logits.reshape(-1, model.vocab_size), following, ignore_label=model.ignore_id)
    if not model.training and model.error_calculator is not None:
        stats.update(attention_error_rates(model.error_calculator, logits, text))
    return loss, logits.float(), text_lengths + 1


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
    stats["loss_transducer"] = loss.detach()
    if not model.training and model.error_calculator is not None:
        found = task.greedy(encoded, front.lengths)
        stats.update(transducer_error_rates(model.error_calculator, found, *text))
    return loss, lattice


def distillation(
    model: TodmModel, teacher: Posteriors, student: Posteriors, batch: Batch, divergence: Divergence
) -> Tensor:
    """Divergence of a student from a teacher in nats, averaged over utterances: as :func:`run_task` puts losses together.

    Of CTC/attention only CTC counts, and whole, unless the model distils the attention decoder too.
    """
    parts = []
    if student.lattice is not None and teacher.lattice is not None:
        ranges = student.lattice.ranges
        logits = teacher.lattice.logits_at(ranges), student.lattice.logits
        sizes = batch.text, student.lengths.clamp(min=1), batch.text_lengths  # what has no frame has a lattice of one
        scale = model.transducer_options.distillation_scale
        parts.append(lattice_distillation(*logits, *sizes, divergence, ranges, model.decoder.blank_id, scale))
    if student.attention is not None and teacher.attention is not None and student.tokens is not None:
        per_token = model.criterion_att.normalize_length
        loss = token_distillation(teacher.attention, student.attention, student.tokens, divergence, per_token)
        parts.append((1 - model.ctc_weight) * loss)
    if student.ctc is not None and teacher.ctc is not None:
        loss = ctc_frame_distillation(teacher.ctc, student.ctc, student.lengths, divergence)
        parts.append(model.ctc_weight * loss if parts else loss)
    return torch.stack(parts).sum()
