"""What a checkpoint keeps of the switch: whole, averaged by ESPnet, of an older release, of another model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from espnet_todm.components import Key, Subnet
from espnet_todm.errors import UserError
from espnet_todm.trainers.switch import SwitchState, convert_older

KEYS = [Key(0, "feed_forward", n) for n in range(4)]
SETS = {name: Subnet(name, frozenset(KEYS[:kept])) for name, kept in (("small", 1), ("middle", 3))}
State = dict[str, Tensor]


class Holder(nn.Module):
    """As a trainer holds it."""

    def __init__(self, chosen: bool = False, sizes: tuple[str, ...] = ("small", "middle")) -> None:
        super().__init__()
        self.switch = SwitchState(sizes, KEYS)
        self._register_load_state_dict_pre_hook(convert_older)
        if chosen:
            self.switch.choose(SETS)


def averaged(*states: State) -> State:
    """As ESPnet does it: whole numbers are only added up."""
    sums = {name: torch.stack([state[name] for state in states]).sum(0) for name in states[0]}
    return {name: value if not value.is_floating_point() else value / len(states) for name, value in sums.items()}


@pytest.mark.parametrize("chosen", [False, True])
def test_what_is_saved_is_what_is_loaded(chosen: bool) -> None:
    state, again = Holder(chosen).state_dict(), Holder(not chosen)
    assert {name: (value.dtype, value.tolist()) for name, value in state.items()} == {
        "switch.stage": (torch.int64, 2 if chosen else 1),
        "switch.kept": (torch.int64, [[1, 0, 0, 0], [1, 1, 1, 0]] if chosen else [[0] * 4] * 2),
        "switch.models": (torch.int64, 1),
    }
    again.load_state_dict(state)
    assert again.switch.chosen == (SETS if chosen else {}) and again.switch.stage == (2 if chosen else 1)


def test_an_average_has_the_sets_of_its_models() -> None:
    first, second = Holder().state_dict(), Holder(chosen=True).state_dict()
    for states, sets in (([second] * 3, SETS), ([first] * 2, {})):
        again = Holder()
        again.load_state_dict(averaged(*states))
        assert again.switch.chosen == sets and again.state_dict()["switch.models"] == 1
        again.load_state_dict({name: value / len(states) for name, value in averaged(*states).items()})
        assert again.switch.chosen == sets
    for states in ([first, second], [second, first, first]):
        with pytest.raises(UserError, match=r"average of checkpoints whose components lie in different orders"):
            Holder().load_state_dict(averaged(*states))


def test_a_checkpoint_of_an_older_release() -> None:
    kept = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 0]])
    for chosen, sets in ((kept, SETS), (torch.zeros_like(kept), {})):
        again = Holder()
        again.load_state_dict({"chosen": chosen})
        assert again.switch.chosen == sets
    with pytest.raises(UserError, match="average of checkpoints"):
        Holder().load_state_dict({"chosen": kept / 2})


def test_another_model_is_refused_as_torch_refuses_it() -> None:
    with pytest.raises(RuntimeError, match=r"switch\.kept: the checkpoint has \(2, 4\), the model \(1, 4\)"):
        Holder(sizes=("small",)).load_state_dict(Holder().state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: .*switch\.stage"):
        Holder().load_state_dict({})
