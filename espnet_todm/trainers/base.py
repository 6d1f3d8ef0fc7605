"""What a subnet trainer is: it decides which subnets a step trains, and with which losses."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from espnet_todm.components import Subnet
from espnet_todm.errors import UserError

if TYPE_CHECKING:
    from espnet_todm.models.todm import Batch, TodmModel

Stats = dict[str, Any]


class SubnetTrainer(ABC):
    """Built once per run from ``subnet_trainer_conf``; the model calls it on every training batch.

    Its results must depend on (seed, step) and the batch alone, so that all ranks and a resumed run agree.
    """

    @abstractmethod
    def step(self, model: TodmModel, batch: Batch, step: int) -> tuple[Tensor, Stats]:
        """The loss of training step ``step`` (0-based), ready for backward, and what to report."""

    @abstractmethod
    def picked(self, step: int) -> list[Subnet]:
        """The subnets that training step ``step`` (0-based) trains."""

    @abstractmethod
    def evaluated(self, model: TodmModel) -> list[Subnet]:
        """The subnets that validation measures."""


def build(cls: type, conf: Mapping[str, Any], where: str, *arguments: Any, **defaults: Any) -> Any:
    """``cls(*arguments, **defaults, **conf)``, with a UserError that names an unknown key of ``conf``."""
    if not isinstance(conf, Mapping):
        raise UserError(f"{where}: {conf!r} must be a mapping of options")
    allowed = list(inspect.signature(cls).parameters)[len(arguments) :]
    for key in conf:
        if key not in allowed:
            raise UserError(f"{where}: unknown key {key!r}; allowed: {', '.join(allowed)}")
    return cls(*arguments, **{**defaults, **conf})
