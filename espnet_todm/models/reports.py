"""The statistics that training and validation report, and their names.

ESPnet's own names (``acc``, ``cer_ctc``, ``loss_att``, ...) belong to the full size, or to the largest trained one.
Names with a size as suffix (``acc_small``) belong to that size. ``loss`` in training is the loss that is minimised, in
validation the mean over sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Optional

import torch
from torch import Tensor

from espnet_todm.components import FULL, Subnet
from espnet_todm.models.batch import Batch, Stats

if TYPE_CHECKING:
    from espnet_todm.models.todm import TodmModel


def evaluate(model: TodmModel, batch: Batch) -> tuple[Tensor, Stats]:
    """Compute the loss and the error rates of every trained size. The returned loss (scalar) is the mean over sizes."""
    subnets = evaluated(model, batch.context.step)
    subsampled = model.run_subsampling(batch)
    stats: Stats = {}
    losses = []
    for subnet in subnets:
        output = model.run_subnet(subsampled, batch, subnet)
        losses.append(output.loss.detach())
        if subnet is named_as_stock(subnets):
            stats.update(output.stats)
        stats[f"loss_{subnet.name}"] = losses[-1]
        stats.update({f"{key}_{subnet.name}": output.stats[key] for key in _of_each_size(output.stats)})
    return torch.stack(losses).mean(), stats


def evaluated(model: TodmModel, step: Optional[int] = None) -> list[Subnet]:
    """The subnets that validation evaluates after training step ``step``."""
    return model.subnet_trainer.evaluated(model, step) if model.subnet_trainer else [model.encoder.subnet]


def named_as_stock(subnets: Sequence[Subnet]) -> Subnet:
    """The subnet whose statistics have ESPnet's own names."""
    return next((subnet for subnet in subnets if subnet.name == FULL), subnets[0])


def stock_names(model: TodmModel, phase: str) -> list[str]:
    """ESPnet's names, except ``loss``, of the statistics that every step of a phase ("train" or "valid") reports."""
    attention = model.decoder is not None and not model.use_transducer_decoder
    kinds = {"ctc": model.ctc is not None, "transducer": model.use_transducer_decoder, "att": attention}
    places = model.encoder.places if model.interctc_weight else ()
    between = [f"interctc_layer{place}" for place in places]
    names = [f"loss_{kind}" for kind, has in kinds.items() if has] + (["acc"] if attention else [])
    names += [f"loss_{name}" for name in between]
    if phase == "train" or model.error_calculator is None:
        return names
    names += [f"cer_{name}" for name in between]
    rates = [rate for rate in ("cer", "wer") if getattr(model.error_calculator, f"report_{rate}")]
    names += ["cer_ctc"] if kinds["ctc"] else []
    names += [f"{rate}_transducer" for rate in rates] if kinds["transducer"] else []
    return names + (rates if attention else [])


def reported(model: TodmModel) -> dict[str, list[str]]:
    """Phase -> names of the statistics that every epoch reports. Only these names may be criteria."""
    valid = stock_names(model, "valid")
    each = ["loss", *_of_each_size(valid)]
    sizes = model.subnet_trainer.always_trained(model) if model.subnet_trainer else []
    train = [f"loss_{size}" for size in sizes]
    return {
        "train": ["loss", *stock_names(model, "train"), *train],
        "valid": ["loss", *valid, *(f"{name}_{subnet.name}" for subnet in evaluated(model) for name in each)],
    }


def _of_each_size(names: Sequence[str] | Stats) -> list[str]:
    """The statistics to report for each size. A single loss name is left out, since it equals the size's loss. So is
    intermediate CTC, since a smaller size may lack some of its blocks."""
    names = [name for name in names if "interctc" not in name]
    losses = [name for name in names if name.startswith("loss_")]
    return [name for name in names if name not in losses or len(losses) > 1]
