"""``model: todm``: ESPnet's ASR model around a supernet encoder. Training and validation run subnets; inference is stock."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Callable, Optional, cast

import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.torch_utils.device_funcs import force_gatherable
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_todm.components import FULL, ComponentTable, Cost, Subnet
from espnet_todm.encoders.supernet import FRAMES_PER_SECOND, REFERENCE_SECONDS, Drop, Front, Gates, SupernetEncoder
from espnet_todm.errors import UserError
from espnet_todm.processor import cpu_has
from espnet_todm.trainers.base import Stats, SubnetTrainer

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
OUTPUT_LAYERS = ("shared", "per_size")
# Parts that a model of one size has in another form, or not at all.
OF_SUPERNET = ("encoder.", "size_outputs.", "subnet_trainer.")
# Options of ESPnet's ASR model that would need work for which the subnets have no place.
UNSUPPORTED = ("preencoder", "postencoder", "joint_network")


@dataclass(frozen=True)
class Batch:
    """What ESPnet's collator gives: speech (B, T, F) or (B, samples), text (B, U) padded with -1, lengths (B,)."""

    speech: Tensor
    speech_lengths: Tensor
    text: Tensor
    text_lengths: Tensor


@dataclass(frozen=True)
class SubnetOutput:
    """One subnet on one batch: the task loss, CTC logits (B, T, V) in float32 if the model has CTC, what to report."""

    loss: Tensor
    ctc_logits: Optional[Tensor]
    stats: Stats


class TodmModel(ESPnetASRModel):
    """CTC, or hybrid CTC/attention, whose encoder is a supernet.

    Args:
        output_layers: "shared", or "per_size": each named size has a CTC output layer of its own.
        autocast: "bfloat16" runs training and validation in mixed precision on any device, CPUs too, for which
            ESPnet's own use_amp does nothing. Leave it out where use_amp is on. On a CPU without instructions for it,
            where it would be many times slower than float32, it is not used.
        **espnet: as ESPnet's model takes them.

    Raises:
        UserError: the encoder is no supernet, or a part is configured that a supernet cannot have.
    """

    encoder: SupernetEncoder

    def __init__(self, autocast: Optional[str] = None, output_layers: str = "shared", **espnet: Any) -> None:
        if not isinstance(espnet.get("encoder"), SupernetEncoder):
            raise UserError("model: todm needs a supernet encoder; set encoder: todm_conformer")
        known = list(inspect.signature(ESPnetASRModel).parameters)
        for key in espnet:
            if key not in known:
                raise UserError(
                    f"model_conf: unknown key {key!r} for todm; allowed: autocast, output_layers, {', '.join(known)}"
                )
        for part in UNSUPPORTED:
            if espnet.get(part) is not None:
                raise UserError(f"{part}: model: todm cannot have one")
        if espnet.get("interctc_weight"):
            raise UserError(f"interctc_weight: {espnet['interctc_weight']} is not possible in model: todm; allowed: 0")
        if autocast is not None and autocast not in AUTOCAST:
            raise UserError(f"autocast: {autocast!r} is unknown; allowed: {', '.join(AUTOCAST)} or leave it out")
        if output_layers not in OUTPUT_LAYERS:
            raise UserError(f"output_layers: {output_layers!r} is unknown; allowed: {', '.join(OUTPUT_LAYERS)}")
        super().__init__(**espnet)
        if self.use_linear_decoder or (self.ctc is not None and not self.ctc.ctc_type.startswith("builtin")):
            raise UserError("model: todm trains CTC (ctc_type: builtin) and CTC/attention models only")
        own = [name for name in self.encoder.sizes if name != FULL] if output_layers == "per_size" and self.ctc else []
        self.size_outputs = nn.ModuleDict({name: copy.deepcopy(self.ctc.ctc_lo) for name in own})
        self.autocast_dtype = AUTOCAST[autocast] if autocast else None
        self.slow_autocast = autocast is not None and not cpu_has(autocast)
        if self.slow_autocast:
            logging.warning("autocast: %s would be emulated on this CPU; computing in float32 there", autocast)
        self.subnet_trainer: Optional[SubnetTrainer] = None
        self.step = 0  # set by the trainer before each batch; 0-based
        self.register_load_state_dict_post_hook(_after_loading)
        self.loss_scale: Callable[[], float] = lambda: 1.0  # set by the trainer where gradients are scaled (fp16)

    def forward(
        self, speech: Tensor, speech_lengths: Tensor, text: Tensor, text_lengths: Tensor, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """speech (B, T, F) or (B, samples), text (B, U), lengths (B,) -> loss, statistics, weight, as ESPnet wants them."""
        batch = Batch(speech, speech_lengths, text[:, : text_lengths.max()], text_lengths)
        if self.training:
            if self.subnet_trainer is None:
                raise UserError("model: todm can only be trained with a subnet_trainer, such as subnet_trainer: kd")
            loss, stats = self.subnet_trainer.step(self, batch, self.step)
        else:
            loss, stats = self._evaluate(batch)
        stats["loss"] = loss.detach()
        gathered: tuple[Tensor, dict[str, Tensor], Tensor] = force_gatherable(
            (loss, stats, speech.shape[0]), loss.device
        )
        return gathered

    def run_front(self, batch: Batch) -> Front:
        """Features, SpecAugment, normalisation and subsampling, once for all subnets of a step."""
        with torch.autocast(batch.speech.device.type, enabled=False):
            features, lengths = self._extract_feats(batch.speech, batch.speech_lengths)
            if self.specaug is not None and self.training:
                features, lengths = self.specaug(features, lengths)
            if self.normalize is not None:
                features, lengths = self.normalize(features, lengths)
        with self._autocast():
            return self.encoder.front(features, lengths)

    def run_subnet(
        self, front: Front, batch: Batch, subnet: Subnet, gates: Optional[Gates] = None, drop: Optional[Drop] = None
    ) -> SubnetOutput:
        """The task loss of one subnet. With ``gates`` all blocks run softly in its stead; it lends its output layer."""
        return self.task(self.run_blocks(front, subnet, gates, drop), front, batch, subnet.name)

    def run_blocks(
        self,
        front: Front,
        subnet: Subnet,
        gates: Optional[Gates] = None,
        drop: Optional[Drop] = None,
        exits: Sequence[int] = (),
    ) -> Tensor:
        """:meth:`SupernetEncoder.blocks` in this model's precision."""
        with self._autocast():
            return self.encoder.blocks(front, subnet, gates, drop, exits)

    def task(self, encoded: Tensor, front: Front, batch: Batch, size: str) -> SubnetOutput:
        """ESPnet's CTC, attention, or their interpolation on the encoder's output (B, T, D) for a size."""
        lengths, text, text_lengths = front.lengths, batch.text, batch.text_lengths
        stats: Stats = {}
        logits, loss_ctc, loss_att = None, None, None
        with self._autocast():
            if self.ctc is not None:
                # Log probabilities of whole utterances in bfloat16 would be wrong in the third digit.
                dropped = F.dropout(encoded, self.ctc.dropout_rate, self.training)
                logits = self.output_layer(size)(dropped).float()
            if self.decoder is not None:
                loss_att, stats["acc"], stats["cer"], stats["wer"] = self._calc_att_loss(
                    encoded, lengths, text, text_lengths.clone()
                )
        if logits is not None:
            labels = torch.cat([row[:length] for row, length in zip(text, text_lengths)])
            loss_ctc = self.ctc.loss_fn(logits.transpose(0, 1), labels, lengths, text_lengths)
            if not self.training and self.error_calculator is not None:
                stats["cer_ctc"] = self.error_calculator(logits.argmax(-1).cpu(), text.cpu(), is_ctc=True)
        parts = ((self.ctc_weight, loss_ctc), (1 - self.ctc_weight, loss_att))
        loss = torch.stack([weight * part for weight, part in parts if part is not None]).sum()
        return SubnetOutput(loss, logits, stats)

    def output_layer(self, size: str) -> nn.Linear:
        """The CTC output layer (D, V) of a size."""
        return cast(nn.Linear, self.size_outputs[size] if size in self.size_outputs else self.ctc.ctc_lo)

    def outer_state(self, subnet: Subnet) -> dict[str, Tensor]:
        """What a small model has besides its encoder: this model's parts, with the output layer of the subnet's size."""
        state = {name: v.clone() for name, v in self.state_dict().items() if not name.startswith(OF_SUPERNET)}
        if self.ctc is not None:
            layer = self.output_layer(subnet.name).state_dict()
            state.update({f"ctc.ctc_lo.{name}": value.clone() for name, value in layer.items()})
        return state

    def trained_parameters(self) -> list[Tensor]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def component_table(self) -> ComponentTable:
        """The encoder's table with everything else of the model (output layer, decoder) in its rest."""
        table = self.encoder.component_table()
        others = sum(p.numel() for name, p in self.named_parameters() if not name.startswith(OF_SUPERNET))
        frames = self.encoder.subsampled(int(REFERENCE_SECONDS * FRAMES_PER_SECOND)) / REFERENCE_SECONDS
        flops = 2.0 * frames * self.ctc.ctc_lo.weight.numel() if self.ctc is not None else 0.0
        return replace(table, rest=table.rest + Cost(others, flops))

    def _evaluate(self, batch: Batch) -> tuple[Tensor, Stats]:
        """Loss and error rates of every size that is trained; the loss proper is their mean."""
        subnets = self.subnet_trainer.evaluated(self) if self.subnet_trainer else [self.encoder.subnet]
        front = self.run_front(batch)
        stats: Stats = {}
        losses = []
        for subnet in subnets:
            output = self.run_subnet(front, batch, subnet)
            losses.append(output.loss.detach())
            stats[f"loss_{subnet.name}"] = losses[-1]
            stats.update({f"{key}_{subnet.name}": value for key, value in output.stats.items() if value is not None})
        return torch.stack(losses).mean(), stats

    def _autocast(self) -> AbstractContextManager[Any]:
        device = next(self.parameters()).device.type
        if self.autocast_dtype is None or (self.slow_autocast and device == "cpu"):
            return nullcontext()
        return torch.autocast(device, dtype=self.autocast_dtype)


def _after_loading(model: TodmModel, _keys: Any) -> None:
    """A checkpoint may hold sizes that were learned. Stock inference knows one output layer: that of its subnet."""
    if model.subnet_trainer is not None:
        model.subnet_trainer.restore(model)
    name = model.encoder.subnet.name
    if name in model.size_outputs:
        model.ctc.ctc_lo.load_state_dict(model.size_outputs[name].state_dict())
