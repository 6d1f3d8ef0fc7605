"""The parts of a supernet's model outside its encoder: their state in an extracted model, and their cost."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from espnet_todm.components import ComponentTable, Cost, Subnet
from espnet_todm.encoders.supernet import REFERENCE_SECONDS
from espnet_todm.models.interctc import conditioning_cost
from espnet_todm.util.acoustics import FRAMES_PER_SECOND

if TYPE_CHECKING:
    from espnet_todm.models.todm import TodmModel

# Prefixes of the state that an extracted model has in another form, or not at all.
OF_SUPERNET = ("encoder.", "size_outputs.", "size_joints.", "simple_joint.", "subnet_trainer.")


def outer_state(model: TodmModel, subnet: Subnet) -> dict[str, Tensor]:
    """State of an extracted model without its encoder, with the output layer and the joiner of the subnet's size."""
    state = {name: v.clone() for name, v in model.state_dict().items() if not name.startswith(OF_SUPERNET)}
    if model.ctc is not None:
        layer = model.output_layer(subnet.name).state_dict()
        state.update({f"ctc.ctc_lo.{name}": value.clone() for name, value in layer.items()})
    if subnet.name in model.size_joints:
        joint = model.size_joints[subnet.name].state_dict()
        state.update({f"joint_network.{name}": value.clone() for name, value in joint.items()})
    return state


def component_table(model: TodmModel) -> ComponentTable:
    """The encoder's component table. Its rest includes all other parts of the model (output layer, joiner, decoder)."""
    table = model.encoder.component_table()
    others = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(OF_SUPERNET))
    frames = _output_frames(model) / REFERENCE_SECONDS
    layers = [model.ctc.ctc_lo] if model.ctc is not None else []
    if model.use_transducer_decoder:  # greedy search: the part of the joiner that runs once a frame
        layers += [model.joint_network.lin_enc, model.joint_network.lin_out]
    flops = sum(2.0 * frames * layer.weight.numel() for layer in layers)
    within = model.encoder.subsampled(int(REFERENCE_SECONDS * FRAMES_PER_SECOND)) / REFERENCE_SECONDS
    around = Cost(others, flops + _flops_around(model) / REFERENCE_SECONDS)
    return replace(table, rest=table.rest + around + conditioning_cost(model, within))


def _output_frames(model: TodmModel) -> int:
    """Number of frames that output layers get for an utterance of REFERENCE_SECONDS."""
    frames = model.encoder.subsampled(int(REFERENCE_SECONDS * FRAMES_PER_SECOND))
    return frames // int(getattr(model.postencoder, "length_adaptor_ratio", 1))


def _flops_around(model: TodmModel) -> float:
    """FLOPs of the pre-encoder and the post-encoder on an utterance of REFERENCE_SECONDS."""
    frames, flops = int(REFERENCE_SECONDS * FRAMES_PER_SECOND), 0.0
    if model.preencoder is not None:
        flops += _linear_flops(model.preencoder, frames, model.preencoder.linear_out.in_features)
    if model.postencoder is not None:
        flops += _linear_flops(model.postencoder, model.encoder.subsampled(frames), model.encoder.output_size())
    return flops


@torch.no_grad()
def _linear_flops(module: nn.Module, frames: int, width: int) -> float:
    """FLOPs of a module's linear layers and 1-D convolutions on (1, frames, width), counted in a forward pass."""
    macs: list[int] = []

    def count(layer: nn.Linear | nn.Conv1d, _: Any, output: Tensor) -> None:
        macs.append(output.numel() // layer.weight.size(0) * layer.weight.numel())

    layers = [layer for layer in module.modules() if isinstance(layer, (nn.Linear, nn.Conv1d))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    training = module.training
    where = next(module.parameters(), torch.empty(0))
    module.eval()(where.new_zeros(1, frames, width), torch.tensor([frames], device=where.device))
    module.train(training)
    for hook in hooks:
        hook.remove()
    return 2.0 * sum(macs)
