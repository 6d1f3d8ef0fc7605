"""The switch between the two stages of a training: the stage, the components that each size keeps, and their new order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from espnet_todm.components import Key, Subnet
from espnet_todm.errors import UserError
from espnet_todm.selection.units import Place

FIRST, SECOND = 1, 2
AVERAGED = (
    "the checkpoint is an average of checkpoints whose components lie in different orders, from before and after sizes were"
    " chosen: no model; take one of valid.*.best.pth or an average of later epochs"
)


class SwitchState(nn.Module):
    """The components chosen for each size; empty in the first stage. A checkpoint stores it as three int64 tensors:

    - ``stage`` (): 1 or 2;
    - ``kept`` (sizes, components): 1 where a size keeps a component, else 0;
    - ``models`` (): 1. ESPnet's average of n models sums integer tensors, so all three are n times as large there.

    Args:
        sizes: names of the sizes.
        keys: keys of all components, in the order of the columns of ``kept``.
    """

    def __init__(self, sizes: Sequence[str], keys: Sequence[Key]) -> None:
        super().__init__()
        self.names, self.keys = tuple(sizes), tuple(keys)
        self.chosen: dict[str, Subnet] = {}

    @property
    def stage(self) -> int:
        return SECOND if self.chosen else FIRST

    def choose(self, chosen: Mapping[str, Subnet]) -> None:
        """Set the chosen components, which begins the second stage."""
        self.chosen = {name: chosen[name] for name in self.names}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint stores."""
        sets = [self.chosen[name].components if self.chosen else frozenset() for name in self.names]
        kept = [[int(key in components) for key in self.keys] for components in sets]
        return {"stage": torch.tensor(self.stage), "kept": torch.tensor(kept), "models": torch.tensor(1)}

    def read(self, stage: Tensor, kept: Tensor, models: Tensor) -> None:
        """Restore a checkpoint's state or an average of several. Raises UserError for an average over both stages."""
        count, values = float(models), set(kept.unique().tolist())
        if float(stage) == FIRST * count and values == {0}:
            self.chosen = {}
        elif float(stage) == SECOND * count and values <= {0, count}:
            rows = zip(self.names, kept.tolist())
            self.chosen = {n: Subnet(n, frozenset(k for k, value in zip(self.keys, row) if value)) for n, row in rows}
        else:
            raise UserError(AVERAGED)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination.update({prefix + name: tensor for name, tensor in self.tensors().items()})

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = self.tensors()
        found = {name: state_dict[prefix + name] for name in own if prefix + name in state_dict}
        missing_keys += [prefix + name for name in own if name not in found]
        wrong = [name for name in found if found[name].shape != own[name].shape]
        error_msgs += [
            f"size mismatch for {prefix}{name}: the checkpoint has {tuple(found[name].shape)}, the model"
            f" {tuple(own[name].shape)}."
            for name in wrong
        ]
        if len(found) == len(own) and not wrong:
            self.read(**found)


def sorted_orders(keys: Iterable[Key], chosen: Mapping[str, Subnet]) -> dict[Place, tuple[int, ...]]:
    """The new order of the components of every module: those that more of the chosen sizes keep come first."""
    modules: dict[Place, list[tuple[int, Key]]] = {}
    for key in keys:
        dropped_by = sum(key not in subnet.components for subnet in chosen.values())
        modules.setdefault((key.layer, key.module), []).append((dropped_by, key))
    return {place: tuple(key.index for _, key in sorted(ranked)) for place, ranked in modules.items()}


def moved(orders: Mapping[Place, Sequence[int]], chosen: Mapping[str, Subnet]) -> dict[str, Subnet]:
    """The chosen sizes, with their components named by their places in the new orders."""
    new = {Key(*place, old): Key(*place, index) for place, order in orders.items() for index, old in enumerate(order)}
    return {name: Subnet(name, frozenset(new[key] for key in subnet.components)) for name, subnet in chosen.items()}


def convert_older(state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Convert the state of an older release: one floating-point tensor ``chosen``, all 0 in the first stage."""
    chosen = state_dict.pop(f"{prefix}chosen", None)
    if chosen is not None:
        kept = chosen.long()
        new = {
            "stage": torch.tensor(SECOND if bool(chosen.any()) else FIRST),
            "kept": kept if bool((kept == chosen).all()) else chosen,  # an average over both stages: read() refuses it
            "models": torch.tensor(1),
        }
        state_dict.update({f"{prefix}switch.{name}": value for name, value in new.items()})
