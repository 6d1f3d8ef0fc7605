"""The blocks of each named size as one graph. Torch traces and runs it, without the minutes that a C++ compiler needs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from espnet_todm.components import Subnet
from espnet_todm.errors import UserError
from espnet_todm.models import compiled
from espnet_todm.models.todm import TodmModel
from espnet_todm.trainers.kd import KDTrainer
from tests.tiny_model import batch, gradients, run, tiny_model

pytestmark = pytest.mark.skipif(not hasattr(torch, "compile"), reason="torch has no compile")
QUIET = {"dropout_rate": 0.0, "attention_dropout_rate": 0.0, "positional_dropout_rate": 0.0}
SMALL = {**QUIET, "num_blocks": 1, "sizes": {"small": {"ffn": 0.5, "heads": 0.5}}}


class Backend:
    """Counts graphs, and runs them as they are."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, module: torch.fx.GraphModule, inputs: Any) -> Any:
        self.graphs += 1
        return module.forward


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Backend:
    torch._dynamo.reset()
    made = Backend()
    monkeypatch.setattr(compiled, "BACKEND", made)
    return made


def pair(**encoder: Any) -> tuple[TodmModel, TodmModel]:
    """A model with compiled blocks, and its equal without."""
    ours = tiny_model(model={"compile": True}, **{**SMALL, **encoder}).train()
    theirs = copy.deepcopy(ours)
    theirs.compiled = None
    return ours, theirs


@pytest.mark.parametrize("encoder", [{}, {"conv_norm": "batch_norm", "own_affine": True, "own_branch_scale": 0.5}])
def test_a_training_is_the_same_with_one_graph_for_each_size(backend: Backend, encoder: dict[str, Any]) -> None:
    models = pair(**encoder)
    for model in models:
        model.subnet_trainer = KDTrainer(model, random_subnets="all")
        model.optimizer = torch.optim.SGD(model.trained_parameters(), lr=0.1)
    for step, frames in enumerate((60, 60, 75, 90, 60)):
        losses = []
        for model in models:
            loss, _ = run(model, batch(utterances=2 + step % 2, frames=frames, seed=step), step)
            model.optimizer.zero_grad()
            loss.backward()
            losses.append((loss.detach(), gradients(model)))
            model.optimizer.step()
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-6)
    assert backend.graphs == 2  # full and small, whatever the lengths and batch sizes
    states = [dict(model.state_dict()) for model in models]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-6)


def test_passes_that_do_not_repeat_are_not_compiled(backend: Backend) -> None:
    model = tiny_model(model={"compile": True}, stochastic_depth_rate=0.3).train()
    model.subnet_trainer = KDTrainer(model)
    for step in range(4):
        run(model, batch(), step)
    assert backend.graphs == 0
    plain = tiny_model(model={"compile": True}, **SMALL).train()
    plain.subnet_trainer = KDTrainer(plain, search_space={"ffn": [0.5, 1.0]})
    for step in range(4):
        run(plain, batch(), step)
    assert backend.graphs == 1  # the full size; the others are drawn from ranges, and have no names


def test_a_size_that_is_chosen_anew_is_compiled_anew(backend: Backend) -> None:
    ours, theirs = pair()
    first = ours.encoder.sizes["small"]
    fewer = Subnet("small", frozenset(sorted(first.components)[:-1]))
    for chosen in (first, fewer):
        outputs = []
        for model in (ours, theirs):
            model.encoder.choose({"small": chosen})
            with torch.no_grad():
                subsampled = model.run_subsampling(batch())
                outputs.append([model.run_blocks(subsampled, batch(), chosen) for _ in range(2)])
        torch.testing.assert_close(*outputs)
    assert backend.graphs == 2


def test_where_torch_cannot_compile_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: nn.Module, inputs: Any) -> Any:
        raise RuntimeError("no C++ compiler\nwas found")

    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "BACKEND", broken)
    model, _ = pair()
    model.subnet_trainer = KDTrainer(model)
    run(model, batch(), 0)
    with pytest.raises(UserError, match=r"model_conf\.compile: true: torch cannot compile here \(.*no C\+\+") as error:
        run(model, batch(), 1)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"compile: 'yes' must be true or false"):
        tiny_model(model={"compile": "yes"})
