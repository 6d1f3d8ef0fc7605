"""The task loss of one size (CTC, attention, both, or a transducer), and the distillation loss between two sizes.

The statistics have ESPnet's own names, see :func:`espnet_todm.models.reports.stock_names`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from espnet_todm.components import Subnet
from espnet_todm.encoders.chunks import length_mask
from espnet_todm.encoders.interctc import Taken
from espnet_todm.encoders.passes import SubsampledFeatures
from espnet_todm.losses.alpha_divergence import Divergence
from espnet_todm.losses.distillation import ctc_frame_distillation, lattice_distillation, token_distillation
from espnet_todm.models.batch import Batch, Posteriors, Stats, StepContext, SubnetOutput, labels_of, shortened
from espnet_todm.models.odd_utterances import heard, lengthen
from espnet_todm.models.transducer import Lattice
from espnet_todm.precision import at_least_float32
from espnet_todm.util.host import copy_on_host, on_both, values

if TYPE_CHECKING:
    from espnet_todm.models.todm import TodmModel


def run_task(
    model: TodmModel,
    encoded: Tensor,
    subsampled: SubsampledFeatures,
    batch: Batch,
    size: str,
    teacher: Optional[Posteriors] = None,
    taken: Sequence[Taken] = (),
) -> SubnetOutput:
    """Compute ESPnet's loss on the encoder's output (B, T, D) for a size: CTC, attention, their interpolation, or the
    transducer loss plus ctc_weight times CTC. The CTC loss includes intermediate CTC on the outputs in ``taken``."""
    stats: Stats = {}
    within = subsampled
    encoded, subsampled = after_encoder(model, encoded, subsampled, batch.context)
    loss_ctc, logits = ctc_task(model, encoded, subsampled, batch, size, stats)
    if loss_ctc is not None:
        loss_ctc = with_intermediate(model, loss_ctc, taken, within, batch, size, stats)
    said = Posteriors(subsampled.lengths, logits)
    if model.use_transducer_decoder:
        loss, lattice = _transducer_task(model, encoded, subsampled, batch, size, teacher, stats)
        loss = loss if loss_ctc is None else loss + model.ctc_weight * loss_ctc
        return SubnetOutput(loss, replace(said, lattice=lattice), stats)
    loss_att = None
    if model.decoder is not None:
        loss_att, attention, tokens = _attention_task(model, encoded, subsampled, batch, stats)
        said = replace(said, attention=attention, tokens=tokens) if model.distils_attention else said
    parts = ((model.ctc_weight, loss_ctc), (1 - model.ctc_weight, loss_att))
    loss = torch.stack([weight * part for weight, part in parts if part is not None]).sum()
    return SubnetOutput(loss, said, stats)


def loss_per_label(model: TodmModel, output: SubnetOutput, batch: Batch) -> Tensor:
    """The task loss of a subnet in nats per label of the batch: a scalar without graph.

    It is the mean over the model's losses (CTC, attention, transducer) with the weights of the task. Each is summed over
    an utterance and divided by its number of labels, whatever the model's normalisation. So one bound holds for all models.
    """
    ratio = len(batch.text) / batch.text_lengths.sum().clamp(min=1)  # from a mean over utterances to one over labels
    lattice = sum(model.transducer_options.weights(batch.context.step)) if model.simple_joint is not None else 1.0
    per_token = model.decoder is not None and not model.use_transducer_decoder and model.criterion_att.normalize_length
    att_weight = 0.0 if model.use_transducer_decoder else 1 - model.ctc_weight
    parts = (
        ("loss_ctc", model.ctc_weight, ratio),
        ("loss_att", att_weight, torch.ones_like(ratio) if per_token else ratio),
        ("loss_transducer", 1.0, ratio / lattice),  # its loss is that of the simple lattice and that of the pruned one
    )
    used = [(weight, output.stats[name] * factor) for name, weight, factor in parts if name in output.stats]
    return torch.stack([weight * loss for weight, loss in used]).sum() / sum(weight for weight, _ in used)


def after_encoder(
    model: TodmModel, encoded: Tensor, subsampled: SubsampledFeatures, context: StepContext
) -> tuple[Tensor, SubsampledFeatures]:
    """Run the post-encoder, if there is one: (B, T, D) -> its output (B, T', D'), and ``subsampled`` with new lengths."""
    if model.postencoder is None:
        return encoded, subsampled
    with context.autocast(encoded.device):
        encoded = lengthen(encoded, getattr(model.postencoder, "length_adaptor_ratio", 1))
        encoded, lengths = model.postencoder(encoded, subsampled.lengths)
    return encoded, replace(subsampled, lengths=lengths, mask=length_mask(lengths, encoded.size(1)), visible=None)


def ctc_task(
    model: TodmModel,
    encoded: Tensor,
    subsampled: SubsampledFeatures,
    batch: Batch,
    size: str,
    stats: Stats,
    name: str = "ctc",
) -> tuple[Optional[Tensor], Optional[Tensor]]:
    """CTC loss and logits (B, T, V) in float32, both None without CTC. ``name`` is the suffix of the statistics."""
    if model.ctc is None:
        return None, None
    logits = _ctc_logits(model, encoded, subsampled, batch, size)
    loss = _ctc_loss(model, logits, subsampled.lengths, batch)
    stats[f"loss_{name}"] = loss.detach()
    if batch.context.error_rates and model.error_calculator is not None:
        stats[f"cer_{name}"] = model.error_calculator(logits.argmax(-1).cpu(), copy_on_host(batch.text), is_ctc=True)
    return loss, logits


def _ctc_logits(model: TodmModel, encoded: Tensor, subsampled: SubsampledFeatures, batch: Batch, size: str) -> Tensor:
    """Encoder's output (B, T, D) -> (B, T, V) in float32."""
    with batch.context.autocast(encoded.device):
        # float32, since log probabilities of utterances in bfloat16 have only about two correct digits.
        encoded = F.dropout(encoded, model.ctc.dropout_rate, batch.context.training and subsampled.dropout)
        return at_least_float32(model.output_layer(size)(encoded))


def run_ctc(model: TodmModel, subsampled: SubsampledFeatures, batch: Batch, subnet: Subnet) -> Tensor:
    """CTC logits (B, T, V) of a subnet, in float32, without its losses. The model has a CTC output."""
    encoded = model.run_blocks(subsampled, batch, subnet)
    encoded, subsampled = after_encoder(model, encoded, subsampled, batch.context)
    return _ctc_logits(model, encoded, subsampled, batch, subnet.name)


def _ctc_loss(model: TodmModel, logits: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
    """Logits (B, T, V) -> mean loss over utterances. Utterances without a frame have loss 0."""
    rows, utterances, text_lengths, labels = heard(lengths), len(logits), batch.text_lengths, batch.labels
    if rows is not None:
        if not len(rows):
            return logits.sum() * 0.0
        logits, lengths, text_lengths = (x[rows] for x in (logits, lengths, text_lengths))
        labels = labels_of(batch.text[rows], text_lengths)
    sizes: tuple[Any, Any] = lengths, text_lengths
    # torch's loss needs them on the host. ESPnet itself reads them in other kinds of CTC.
    if model.ctc.ctc_type == "builtin" and model.ctc.ctc_loss.zero_infinity:
        sizes = values(lengths), values(text_lengths)
    loss: Tensor = model.ctc.loss_fn(logits.transpose(0, 1), labels, *sizes)
    return loss if rows is None else loss * (len(rows) / utterances)


def _attention_task(
    model: TodmModel, encoded: Tensor, subsampled: SubsampledFeatures, batch: Batch, stats: Stats
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of the attention decoder, its logits (n, U, V) in float32, and tokens of each utterance with its end, (n,).

    As in CTC, utterances without a frame have loss 0. They are not among the n utterances. Accuracy and error rates include
    them only if the batch has no other.
    """
    inputs: tuple[Tensor, ...] = encoded, subsampled.lengths, *_with_language(model, batch)
    rows = heard(subsampled.lengths)
    if rows is not None and len(rows):
        inputs = tuple(x[rows] for x in inputs)
    encoded, lengths, text, text_lengths = inputs
    text = shortened(text, text_lengths)
    before, following = with_ends(text, model.sos, model.eos, model.ignore_id)
    with batch.context.autocast(encoded.device):
        # Lengths on the host: ESPnet's decoder reads their values.
        on_host = copy_on_host(lengths), copy_on_host(text_lengths) + 1
        logits, _ = model.decoder(encoded, on_host[0], before, on_host[1])
        logits = at_least_float32(logits)
        loss = model.criterion_att(logits, following) * (1.0 if rows is None else len(rows) / len(batch.text))
        stats["acc"] = accuracy(logits, following, model.ignore_id)
    stats["loss_att"] = loss.detach()
    if batch.context.error_rates and model.error_calculator is not None:
        rates = zip(("cer", "wer"), model.error_calculator(logits.argmax(-1).cpu(), copy_on_host(text)))
        stats.update({name: rate for name, rate in rates if rate is not None})
    return loss, logits, on_both(_tokens, text_lengths, lengths)


def with_ends(text: Tensor, start: int, end: int, padding: int) -> tuple[Tensor, Tensor]:
    """Text (B, U) with ``padding`` behind each utterance -> an attention decoder's input and target, (B, U + 1) each.

    The input begins with the label ``start`` and is padded with ``end``. The target ends with ``end`` and is padded with
    ``padding``.
    """
    valid = text != padding
    before = F.pad(text.masked_fill(~valid, end), (1, 0), value=start)
    ends = F.pad(valid, (1, 0), value=True) & ~F.pad(valid, (0, 1), value=False)  # the first place behind an utterance
    return before, F.pad(text, (0, 1), value=padding).masked_fill(ends, end)


def accuracy(logits: Tensor, labels: Tensor, padding: int) -> Tensor:
    """Share of the labels (B, U), without padding, that are the most probable ones of the logits (B, U, V): a scalar."""
    valid = labels != padding
    return ((logits.argmax(-1) == labels) & valid).sum() / valid.sum()


def _tokens(text_lengths: Tensor, lengths: Tensor) -> Tensor:
    """Tokens of utterances with their ends, 0 without a frame."""
    return (text_lengths + 1) * (lengths > 0)


def _with_language(model: TodmModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Text (B, U) and lengths (B,). If the model has a language token, it precedes the text, and both grow by 1."""
    token = getattr(model, "lang_token_id", None)  # ESPnet 202402 lacks this attribute
    if token is None:
        return batch.text, batch.text_lengths
    return torch.cat([token.to(batch.text).expand(len(batch.text), 1), batch.text], dim=1), batch.text_lengths + 1


def _transducer_task(
    model: TodmModel,
    encoded: Tensor,
    subsampled: SubsampledFeatures,
    batch: Batch,
    size: str,
    teacher: Optional[Posteriors],
    stats: Stats,
) -> tuple[Tensor, Lattice]:
    task = model.transducer(size)
    text = batch.text, batch.text_lengths
    with batch.context.autocast(encoded.device):
        loss, lattice = task(
            encoded, subsampled.lengths, *text, batch.context.step, teacher.lattice if teacher else None
        )
    stats["loss_transducer"] = loss.detach()
    if batch.context.error_rates and model.error_calculator is not None:
        stats.update(model.error_calculator.of_transducer(task.greedy(encoded, subsampled.lengths), *text))
    return loss, lattice


def distillation(
    model: TodmModel, teacher: Posteriors, student: Posteriors, batch: Batch, divergence: Divergence
) -> Tensor:
    """Divergence of a student from a teacher in nats, averaged over utterances. :func:`run_task` has the same weights.

    CTC/attention distils only CTC, with weight 1, unless the model also distils the attention decoder.
    """
    parts = []
    if student.lattice is not None and teacher.lattice is not None:
        parts.append(_lattice_distillation(model, teacher.lattice, student.lattice, student.lengths, batch, divergence))
    if student.attention is not None and teacher.attention is not None and student.tokens is not None:
        per_token, share = model.criterion_att.normalize_length, len(student.attention) / len(batch.text)
        loss = token_distillation(teacher.attention, student.attention, student.tokens, divergence, per_token)
        parts.append((1 - model.ctc_weight) * share * loss)
    if student.ctc is not None and teacher.ctc is not None:
        loss = ctc_frame_distillation(teacher.ctc, student.ctc, student.lengths, divergence)
        parts.append(model.ctc_weight * loss if parts else loss)
    return torch.stack(parts).sum()


def _lattice_distillation(
    model: TodmModel, teacher: Lattice, student: Lattice, lengths: Tensor, batch: Batch, divergence: Divergence
) -> Tensor:
    """Mean over utterances, as in the transducer's loss. Utterances without a frame have divergence 0."""
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


def with_intermediate(
    model: TodmModel,
    loss: Tensor,
    taken: Sequence[Taken],
    subsampled: SubsampledFeatures,
    batch: Batch,
    size: str,
    stats: Stats,
) -> Tensor:
    """``(1 - w) * loss + w * mean of the intermediate losses``, with w = ``interctc_weight``, as in ESPnet.

    ``loss`` is the CTC loss. It is returned unchanged for a size without intermediate outputs.
    """
    if not (model.interctc_weight and taken):
        return loss
    total, weights = torch.zeros_like(loss), torch.zeros_like(loss)
    for place, output, weight in taken:
        intermediate, _ = ctc_task(model, output, subsampled, batch, size, stats, f"interctc_layer{place}")
        assert intermediate is not None  # there is a CTC output
        total, weights = total + weight * intermediate, weights + weight
    # With soft gates the weights may sum to less than 1. The final output then gets the remaining weight.
    share = model.interctc_weight * weights / weights.clamp(min=1.0)
    return (1 - share) * loss + model.interctc_weight * total / weights.clamp(min=1.0)
