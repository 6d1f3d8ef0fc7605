"""What a supernet's model has beside its encoder: the parts that every small model takes along, and what they cost."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from espnet_todm.acoustics import FRAMES_PER_SECOND
from espnet_todm.components import ComponentTable, Cost, Subnet
from espnet_todm.encoders.supernet import REFERENCE_SECONDS

if TYPE_CHECKING:
    from espnet_todm.models.todm import TodmModel

# Parts that a model of one size has in another form, or not at all.
OF_SUPERNET = ("encoder.", "size_outputs.", "size_joints.", "simple_joint.", "subnet_trainer.")


def outer_state(model: TodmModel, subnet: Subnet) -> dict[str, Tensor]:
    """State of a small model without its encoder: the supernet's parts, with the output layers of the subnet's size."""
    state = {name: v.clone() for name, v in model.state_dict().items() if not name.startswith(OF_SUPERNET)}
    if model.ctc is not None:
        layer = model.output_layer(subnet.name).state_dict()
        state.update({f"ctc.ctc_lo.{name}": value.clone() for name, value in layer.items()})
    if subnet.name in model.size_joints:
        joint = model.size_joints[subnet.name].state_dict()
        state.update({f"joint_network.{name}": value.clone() for name, value in joint.items()})
    return state


def component_table(model: TodmModel) -> ComponentTable:
    """The encoder's table with everything else of the model (output layer, joiner, decoder) in its rest."""
    table = model.encoder.component_table()
    others = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(OF_SUPERNET))
    frames = model.encoder.subsampled(int(REFERENCE_SECONDS * FRAMES_PER_SECOND)) / REFERENCE_SECONDS
    layers = [model.ctc.ctc_lo] if model.ctc is not None else []
    if model.use_transducer_decoder:  # of a greedy search: what each frame takes once of the joiner
        layers += [model.joint_network.lin_enc, model.joint_network.lin_out]
    flops = sum(2.0 * frames * layer.weight.numel() for layer in layers)
    return replace(table, rest=table.rest + Cost(others, flops))
