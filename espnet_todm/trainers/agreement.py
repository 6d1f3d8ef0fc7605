"""Gradient agreement: cosines between the gradient of each subnet and that of the max subnet, as statistics of a step.

A cosine near 1 says that the two subnets ask for the same change of the weights that they share, 0 that neither helps the
other, and a negative one that they pull in opposite directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Optional

import torch
from torch import Tensor

from espnet_todm.components import Subnet
from espnet_todm.models.batch import Stats
from espnet_todm.util.checks import check_number

if TYPE_CHECKING:
    from espnet_todm.models.todm import TodmModel

ALL, FRONT, OUTPUT = "all", "front", "output"
BEFORE_BLOCKS = ("frontend.", "normalize.", "preencoder.", "encoder.embed.")
THIRDS = ("first_third", "middle_third", "last_third")


class GradientAgreement:
    """Measures the agreement in every ``every``-th step (0, ``every``, ...); 0: never.

    A measured step reports ``agreement_<part>_<subnet>`` for each subnet but the max one. The parts are:

    - ``all``: all parameters that both subnets use, except those before the first block.
    - the modules of the blocks by their names (``self_attn``, ``feed_forward``, ...), each with the norm before it.
    - ``first_third``, ``middle_third``, ``last_third``: the blocks by their depth.
    - ``output``: parameters behind the blocks (output norm, output layer, decoder, predictor, joiner).
    - ``front``: the gradient at the subsampled features, since parameters before them only get one gradient for all
      subnets. If each subnet subsamples its own view: these parameters.

    Raises UserError if ``every`` is no whole number of at least 0.
    """

    def __init__(self, every: int = 0) -> None:
        check_number("agreement_every", every, at_least=0, whole=True)
        self.every = every

    def of_step(
        self, model: TodmModel, subnets: Sequence[Subnet], stats: Stats, step: int, own_front: bool = False
    ) -> Optional[AgreementOfStep]:
        """The ``observe`` of a step that trains ``subnets``, the max one first. It adds to ``stats``. None: not measured.

        ``own_front``: each subnet runs the parameters before the blocks itself.
        """
        if not self.every or step % self.every:
            return None
        at_shared = () if own_front else (FRONT,)
        return AgreementOfStep([at_shared, *_parts(model)], [subnet.name for subnet in subnets], stats)


class AgreementOfStep:
    """Called after each pass with its number and its gradients. Keeps the first pass's gradients until the step ends.

    The cosine of a part is <s, m> / (|s| |m|). s is the subnet's gradient over all parameters of the part that both passes
    reach, m is the max subnet's on the entries where s is not 0. A slice leaves the entries that it does not use at 0, so
    the max subnet's gradient counts only where the smaller subnet has weights. Each gradient is that of its subnet's whole
    loss, distillation included, on this rank's utterances. The cosine is NaN where either gradient is 0 throughout; ESPnet
    leaves NaN out of its averages.

    Args:
        parts: the parts to which each gradient belongs.
        names: names of the subnets, in the order of the passes. Later passes are ignored.
        stats: receives the cosines, scalar float32 tensors on the gradients' device. The device is not waited for.
    """

    def __init__(self, parts: Sequence[Sequence[str]], names: Sequence[str], stats: Stats) -> None:
        self.parts, self.names, self.stats = parts, names, stats
        self.largest: Sequence[Optional[Tensor]] = ()

    @torch.no_grad()
    def __call__(self, number: int, gradients: Sequence[Optional[Tensor]]) -> None:
        if number == 0:
            self.largest = gradients
            return
        if number >= len(self.names):
            return
        sums: dict[str, Tensor] = {}
        for parts, ours, largest in zip(self.parts, gradients, self.largest):
            if ours is None or largest is None:
                continue
            products = _products(ours, largest)
            for part in parts:
                sums[part] = sums[part] + products if part in sums else products
        for part, (both, ours, largest) in sums.items():
            self.stats[f"agreement_{part}_{self.names[number]}"] = both / (ours * largest).sqrt()


def _products(ours: Tensor, largest: Tensor) -> Tensor:
    """Two gradients of one shape -> (<s, m>, |s|^2, |m|^2) in float32, see :class:`AgreementOfStep`."""
    largest = torch.where(ours != 0, largest, torch.zeros_like(largest)).float()
    ours = ours.float()
    return torch.stack([(ours * largest).sum(), ours.square().sum(), largest.square().sum()])


def _parts(model: TodmModel) -> Iterator[tuple[str, ...]]:
    """The parts of each of the model's trained parameters, in their order."""
    blocks: list[Any] = list(model.encoder.encoders)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if not name.startswith("encoder.encoders."):
            yield (FRONT,) if name.startswith(BEFORE_BLOCKS) else (ALL, OUTPUT)
            continue
        layer, module = name.split(".")[2:4]
        modules = {place: slot.name for slot in blocks[int(layer)].order for place in (slot.name, slot.norm)}
        third = THIRDS[len(THIRDS) * int(layer) // len(blocks)]
        yield (ALL, third, modules[module]) if module in modules else (ALL, third)
