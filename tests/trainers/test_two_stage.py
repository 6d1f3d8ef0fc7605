"""Two-stage training: gates, then slices; the switch, its checkpoint, and defects of OrthoSoftmax's reference code."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Callable

import pytest
import torch

from espnet_todm.card import read_card
from espnet_todm.components import Subnet
from espnet_todm.encoders.supernet import SupernetEncoder
from espnet_todm.errors import UserError
from espnet_todm.models.subnet_trainer import SizeUpdates, TrainingSetup
from espnet_todm.models.todm import TodmModel
from espnet_todm.optim.scaled_adam import ScaledAdam
from espnet_todm.selection.known import find_selection
from espnet_todm.trainers.known import ALIASES, alias
from espnet_todm.trainers.selection_log import SelectionLog
from espnet_todm.trainers.two_stage import TwoStageTrainer
from espnet_todm.util.checks import build
from tests.conftest import e_branchformer, mh_ssm
from tests.tiny_model import batch, gradients, run, tiny_model

SHARES = {"small": 0.6, "middle": 0.8}
LEARNED = ["ortho_softmax", "top_k", "zero_out"]
ALL = [*LEARNED, "random_nested", "uniform"]


def learner(selection: str = "ortho_softmax", model: dict[str, Any] | None = None, **conf: Any) -> TodmModel:
    made = tiny_model(model=model, sizes=SHARES).train()
    made.subnet_trainer = build(TwoStageTrainer, {"selection": selection, **conf}, "subnet_trainer_conf", made)
    return made


def train(model: TodmModel, steps: range, optimizer: torch.optim.Optimizer) -> None:
    for step in steps:
        model.subnet_trainer.prepare(model, step, TrainingSetup([optimizer]))
        optimizer.zero_grad(set_to_none=True)  # what torch 2 does
        run(model, batch(seed=step), step)[0].backward()
        optimizer.step()


def adam(model: TodmModel) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


@pytest.mark.parametrize("selection", LEARNED)
def test_stage_1_trains_the_supernet_and_what_is_learned(selection: str) -> None:
    model = learner(selection, stage1_steps=10)
    loss, stats = run(model, batch())
    loss.backward()
    assert sum(name in stats for name in ("loss_small", "loss_middle")) == 1
    learned = [p for name, p in model.named_parameters() if name.startswith("subnet_trainer.")]
    assert learned and all(p.grad is not None and bool(p.grad.isfinite().all()) for p in learned)
    assert any(float(p.grad.abs().max()) > 0 for p in learned)


@pytest.mark.parametrize("make", [e_branchformer, mh_ssm])
def test_every_encoder_learns_a_selection(make: Callable[..., SupernetEncoder], tmp_path: Path) -> None:
    model = tiny_model(supernet=make(sizes=SHARES)).train()
    model.subnet_trainer = build(TwoStageTrainer, {"stage1_steps": 2}, "subnet_trainer_conf", model)
    train(model, range(1), adam(model))
    learned = [p for name, p in model.named_parameters() if name.startswith("subnet_trainer.")]
    assert learned and all(bool(p.grad.isfinite().all()) and bool(p.grad.any()) for p in learned)
    train(model, range(1, 4), adam(model))
    chosen, table = model.encoder.sizes, model.component_table()
    assert chosen["small"].components < chosen["middle"].components < chosen["full"].components
    SelectionLog(tmp_path).write_cards(model, chosen)
    card = read_card(tmp_path / "sizes" / "small.json")
    assert card["encoder"] == model.encoder.name and card["cost"]["params"] == table.cost(chosen["small"]).params


def test_stage_1_loss_is_the_papers() -> None:
    model = learner(stage1_steps=10, penalty_schedule="constant")
    of = batch()
    loss, stats = run(model, of)
    frames = model.run_subsampling(of).lengths.sum() / len(of.speech)
    size = next(stats[f"loss_{name}"] for name in SHARES if f"loss_{name}" in stats) / frames
    expected = stats["loss_full"] / frames + (1 - torch.exp(-size)) * size + stats["penalty"]
    torch.testing.assert_close(loss.detach(), expected)


@pytest.mark.parametrize("detached", [True, False])
def test_focal_weight_is_detached_or_not(detached: bool) -> None:
    model = learner(stage1_steps=10, focal_detached=detached, penalty_weight=0.0)
    run(model, batch())[0].backward()
    weights = model.encoder.encoders[0].feed_forward.w_1.weight.grad
    plain = learner(stage1_steps=10, subnet_weight=1.0, penalty_weight=0.0)
    run(plain, batch())[0].backward()
    assert not torch.allclose(weights, plain.encoder.encoders[0].feed_forward.w_1.weight.grad)


@pytest.mark.parametrize("selection", ALL)
def test_stage_2_trains_slices_within_their_budgets(selection: str) -> None:
    model = learner(selection, stage1_steps=4 if selection in LEARNED else 0)
    train(model, range(6), adam(model))
    table, sizes = model.encoder.component_table(), model.encoder.sizes
    assert sizes["small"].components < sizes["middle"].components < sizes["full"].components
    assert all(table.share(sizes[name], "params") <= share for name, share in SHARES.items())
    _, stats = run(model, batch(), 6)
    assert {"loss_full", "loss_small", "loss_middle"} <= stats.keys()
    assert [subnet.name for subnet in model.subnet_trainer.picked(7)] == ["full", "middle", "small"]


def test_sorting_components_at_the_switch_keeps_every_function_and_makes_slices_prefixes() -> None:
    model = learner(stage1_steps=3, layer_drop=0.0)
    optimizer = adam(model)
    train(model, range(3), optimizer)
    order = model.subnet_trainer.selection.order(3)
    before = model.subnet_trainer.selection.units.nested(order, model.subnet_trainer.shares)
    of = batch()
    with torch.no_grad():
        expected = {
            name: model.run_subnet(model.run_subsampling(of), of, subnet).loss for name, subnet in before.items()
        }
        model.subnet_trainer.decide(model, 3, [optimizer])
        for name, value in expected.items():
            subnet = model.encoder.sizes[name]
            torch.testing.assert_close(model.run_subnet(model.run_subsampling(of), of, subnet).loss, value)
            for modules in subnet.layers.values():
                assert all(kept == tuple(range(len(kept))) for kept in modules.values())
    assert any(before[n].components != model.encoder.sizes[n].components for n in before)  # something had to move


def test_the_optimizers_state_moves_with_the_components() -> None:
    moved, plain = (learner(stage1_steps=100, layer_drop=0.0) for _ in range(2))
    optimizers = [adam(moved), adam(plain)]
    for model, optimizer in zip((moved, plain), optimizers):
        train(model, range(3), optimizer)
    place, order = (0, "feed_forward"), (2, 0, 3, 1)
    moved.encoder.reorder({place: order}, dict(optimizers[0].state))
    name = "encoder.encoders.0.feed_forward.w_1.weight"
    for model, optimizer in zip((moved, plain), optimizers):
        optimizer.zero_grad()
        of = batch(seed=9)
        output = model.run_subnet(model.run_subsampling(of), of, model.encoder.component_table().full())
        output.loss.backward()
        optimizer.step()
    units = plain.state_dict()[name].unflatten(0, (4, -1))[list(order)].flatten(0, 1)
    torch.testing.assert_close(moved.state_dict()[name], units)


@pytest.mark.parametrize("optimizer", [adam, lambda model: ScaledAdam(model.parameters(), lr=0.03)])
def test_gradients_accumulated_before_the_switch_move_with_their_components(
    optimizer: Callable[[TodmModel], torch.optim.Optimizer],
) -> None:
    """One update from a batch before the switch and one after it, against the same update without any sorting."""
    results = []
    for sort in (True, False):
        model = learner(stage1_steps=100, layer_drop=0.0)
        steps = optimizer(model)
        train(model, range(2), steps)
        full = model.encoder.component_table().full()
        steps.zero_grad()
        order = (2, 0, 3, 1)
        for seed in (7, 8):
            of = batch(seed=seed)
            model.run_subnet(model.run_subsampling(of), of, full).loss.backward()
            if sort and seed == 7:
                model.encoder.reorder({(0, "feed_forward"): order}, dict(steps.state))
        steps.step()
        weights = model.state_dict()["encoder.encoders.0.feed_forward.w_1.weight"].unflatten(0, (4, -1))
        results.append(weights if sort else weights[list(order)])
    torch.testing.assert_close(*results)


def test_batch_norm_statistics_of_sizes_move_too() -> None:
    model = tiny_model(sizes=SHARES, conv_norm="batch_norm", conv_groups=4).train()
    conv = model.encoder.encoders[0].conv_module
    with torch.no_grad():
        conv.size_norms["small"].running_mean.copy_(torch.arange(16.0))
    model.encoder.reorder({(0, "conv_module"): (3, 2, 1, 0)}, {})
    assert conv.size_norms["small"].running_mean[:4].tolist() == [12.0, 13.0, 14.0, 15.0]


@pytest.mark.parametrize("at", [2, 4, 5])
def test_defect_5_a_resume_on_either_side_of_the_switch_goes_on_alike(at: int) -> None:
    undisturbed = learner(stage1_steps=4)
    optimizer = adam(undisturbed)
    torch.manual_seed(0)
    train(undisturbed, range(at), optimizer)
    state, states = copy.deepcopy(undisturbed.state_dict()), copy.deepcopy(optimizer.state_dict())
    torch.manual_seed(1)
    train(undisturbed, range(at, 8), optimizer)

    resumed = learner(stage1_steps=4)
    resumed.load_state_dict(state)
    again = adam(resumed)
    again.load_state_dict(states)
    torch.manual_seed(1)
    train(resumed, range(at, 8), again)
    assert resumed.encoder.sizes == undisturbed.encoder.sizes
    assert all(torch.equal(a, b) for a, b in zip(resumed.state_dict().values(), undisturbed.state_dict().values()))


def test_defect_5_a_run_that_skips_the_very_step_of_the_switch_still_switches() -> None:
    model = learner(stage1_steps=4)
    model.subnet_trainer.prepare(model, 3, TrainingSetup())
    assert not model.subnet_trainer.decided
    model.subnet_trainer.prepare(model, 17, TrainingSetup())  # as after a resume that lost no step 4
    assert model.subnet_trainer.decided
    assert all(subnet.components for subnet in model.encoder.sizes.values())


def test_defect_6_sizes_are_drawn_from_seed_and_step_alone() -> None:
    first, second, other = learner(stage1_steps=100), learner(stage1_steps=100), learner(stage1_steps=100, seed=1)
    names = [[m.subnet_trainer.picked(s)[1].name for s in range(40)] for m in (first, second, other)]
    torch.manual_seed(123)  # the process-wide generator has no say
    assert names[0] == names[1] == [first.subnet_trainer.picked(s)[1].name for s in range(40)]
    assert names[0] != names[2]
    assert set(names[0]) == set(SHARES)


def test_defect_7_no_two_passes_share_a_graph_and_a_size_is_a_small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequential passes: the engine's own tests watch the memory; here: each size leaves as a model of its own."""
    model = learner("random_nested")
    train(model, range(1), adam(model))
    model.eval()
    subnet = model.encoder.sizes["small"]
    small = model.encoder.extract(subnet)
    assert sum(p.numel() for p in small.parameters()) == model.encoder.component_table().cost(subnet).params
    of = batch()
    subsampled = model.run_subsampling(of)
    torch.testing.assert_close(small.blocks(subsampled), model.encoder.blocks(subsampled, subnet))


def test_stochastic_depth_touches_only_modules_that_the_smallest_size_drops_whole() -> None:
    model = learner("random_nested", granularity="layer", layer_drop=0.5)
    train(model, range(1), adam(model))
    kept = {(key.layer, key.module) for key in model.encoder.sizes["small"].components}
    drop = model.subnet_trainer._droppable()
    assert drop and not kept & drop.keys()
    of = batch()
    subsampled, full = model.run_subsampling(of), model.encoder.sizes["full"]
    assert not torch.equal(model.encoder.blocks(subsampled, full, drop=drop), model.encoder.blocks(subsampled, full))
    model.eval()
    torch.testing.assert_close(
        model.encoder.blocks(subsampled, full, drop=drop), model.encoder.blocks(subsampled, full)
    )


def test_distillation_can_be_switched_on_in_both_stages() -> None:
    model = learner(stage1_steps=1, kd_weight=0.5)
    with_kd = [float(run(model, batch(), step)[0].detach()) for step in (0, 1)]
    without = learner(stage1_steps=1)
    torch.manual_seed(0)
    assert with_kd[0] != float(run(without, batch())[0].detach())
    run(model, batch(), 2)[0].backward()
    assert all(g is None or bool(g.isfinite().all()) for g in gradients(model).values())


def test_output_layers_per_size() -> None:
    model = learner("random_nested", model={"output_layers": "per_size"})
    train(model, range(2), adam(model))
    layers = [model.output_layer(name).weight for name in ("full", "middle", "small")]
    assert len({id(layer) for layer in layers}) == 3
    assert not torch.equal(layers[0], layers[2])
    subnet = model.encoder.sizes["small"]
    state = model.outer_state(subnet)
    assert torch.equal(state["ctc.ctc_lo.weight"], layers[2])
    assert not any(name.startswith(("size_outputs", "subnet_trainer", "encoder")) for name in state)
    small = model.encoder.component_table().cost(subnet).params + layers[0].numel() + model.ctc.ctc_lo.bias.numel()
    assert model.component_table().cost(subnet).params == small


def test_validation_in_stage_1_measures_what_would_be_chosen_now() -> None:
    model = learner(stage1_steps=10)
    model.eval()
    _, stats = run(model, batch())
    assert {"loss_full", "loss_small", "loss_middle", "cer_ctc_small"} <= stats.keys()


def test_a_checkpoint_of_stage_1_has_no_sizes_to_take() -> None:
    model = learner(stage1_steps=10)
    with pytest.raises(UserError, match=r"'small' is not there yet.*first stage"):
        model.encoder.find_subnet("small")
    assert model.encoder.find_subnet("full").name == "full"
    with pytest.raises(UserError, match="first stage"):
        model.encoder.subnet = Subnet("small", frozenset())
        model.load_state_dict(model.state_dict())


def test_an_average_over_both_stages_is_refused_and_one_of_the_second_is_not() -> None:
    model = learner(stage1_steps=1)
    before, optimizer = copy.deepcopy(model.state_dict()), adam(model)
    train(model, range(3), optimizer)
    after = copy.deepcopy(model.state_dict())
    train(model, range(3, 5), optimizer)
    again = learner(stage1_steps=1)
    with pytest.raises(UserError, match="average of checkpoints whose components lie in different orders"):
        again.load_state_dict({name: (value + before[name]) / 2 for name, value in after.items()})
    again = learner(stage1_steps=1)
    again.load_state_dict({name: (value + 2 * after[name]) / 3 for name, value in model.state_dict().items()})
    assert again.encoder.sizes == model.encoder.sizes


@pytest.mark.parametrize(
    ("conf", "words"),
    [
        ({"stage1_steps": -1}, ["stage1_steps", "-1"]),
        ({"warmup_steps": 0.5}, ["warmup_steps", "0.5"]),
        ({"stage1_share": 1.0}, ["stage1_share", "1.0"]),
        ({"subnet_weight": "fokal"}, ["subnet_weight", "fokal"]),
        ({"kd_weight": 2}, ["kd_weight", "2"]),
        ({"granularity": "block"}, ["granularity", "block"]),
        ({"temprature": 1}, ["temprature", "temperature_start"]),
        (
            {"selection": "ortho"},
            ["selection: 'ortho' is unknown; allowed: ortho_softmax, top_k,"],
        ),
        ({"selection": ["top_k"]}, ["selection: ['top_k'] is unknown"]),
    ],
)
def test_wrong_options_are_named(conf: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        learner(**conf)
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ALIASES)
def test_a_selections_name_is_that_of_a_trainer_too(name: str) -> None:
    model = tiny_model(sizes=SHARES).train()
    ours, by_option = alias(name)(model), TwoStageTrainer(model, selection=name)
    assert type(ours.selection) is type(by_option.selection) is find_selection(name)
    for option in ("subnet_weight", "stage1_steps", "stage1_share"):
        assert getattr(ours, option) == getattr(by_option, option)
    assert ours.subnet_weight == (0.3 if name in ("top_k", "zero_out") else "focal")
    assert ours.stage1_steps == (0 if name in ("random_nested", "uniform") else None)
    assert type(alias(name)(model, selection=name).selection) is find_selection(name)
    other = next(known for known in ALIASES if known != name)
    with pytest.raises(UserError, match=f"selection: '{other}' under subnet_trainer: {name}; say .*two_stage"):
        alias(name)(model, selection=other)


def test_a_checkpoint_of_an_older_release_goes_on() -> None:
    model = learner(stage1_steps=1)
    train(model, range(2), adam(model))
    state = model.state_dict()
    kept = state.pop("subnet_trainer.switch.kept")
    state = {name: value for name, value in state.items() if "switch" not in name}
    again = learner(stage1_steps=1)
    again.load_state_dict({**state, "subnet_trainer.chosen": kept.float()})
    assert again.encoder.sizes == model.encoder.sizes and again.subnet_trainer.decided


def test_measuring_takes_a_fresh_model_through_both_stages() -> None:
    model = learner(stage1_share=0.5, warmup_steps=2)
    kinds = [(step, model.subnet_trainer.decided) for step in model.subnet_trainer.walk_through(model)]
    assert kinds == [(2, False), (3, True)]
    model = learner("uniform")
    assert list(model.subnet_trainer.walk_through(model)) == [0]


def test_a_first_stage_beyond_the_run_is_refused() -> None:
    model = learner(stage1_steps=100)
    with pytest.raises(UserError, match=r"stage1_steps: 100 .* 50 steps"):
        model.subnet_trainer.prepare(model, 0, TrainingSetup(planned_steps=50))
    share = learner(stage1_share=0.5)
    with pytest.raises(UserError, match="stage1_share"):
        share.subnet_trainer.prepare(share, 0, TrainingSetup())
    share.subnet_trainer.prepare(share, 0, TrainingSetup(planned_steps=50))
    assert share.subnet_trainer.selection.steps == 25
    long = learner(stage1_share=0.5, warmup_steps=25)
    with pytest.raises(UserError, match=r"warmup_steps: 25 .* 25 steps"):
        long.subnet_trainer.prepare(long, 0, TrainingSetup(planned_steps=50))


def test_a_warm_up_trains_the_supernet_alone_and_the_selections_time_begins_after_it() -> None:
    model = learner(warmup_steps=2, stage1_steps=5)
    trainer, optimizer = model.subnet_trainer, adam(model)
    start = trainer.selection.scores.detach().clone()
    train(model, range(2), optimizer)
    assert [subnet.name for subnet in trainer.picked(1)] == ["full"] and torch.equal(trainer.selection.scores, start)
    assert trainer.selection.steps == 3
    train(model, range(2, 5), optimizer)
    assert not trainer.decided and not torch.equal(trainer.selection.scores, start)
    assert len(trainer.picked(2)) == 2
    trainer.prepare(model, 5, TrainingSetup([optimizer]))
    assert trainer.decided
    table = model.component_table()
    one, rest = table.cost(table.full()).flops, table.rest.flops
    slices = rest + sum(table.cost(subnet).flops - rest for subnet in trainer.picked(5))
    assert trainer.model_steps(table, 6) == pytest.approx(2 + (3 * (2 * one - rest) + slices) / one)


def test_a_fixed_set_is_no_budget() -> None:
    model = tiny_model().train()
    with pytest.raises(UserError, match=r"sizes.middle: .* fixed set"):
        TwoStageTrainer(model)


def test_cost_of_a_run_is_two_full_passes_a_step_and_then_slices() -> None:
    model = learner(stage1_steps=2)
    train(model, range(3), adam(model))
    table, sizes = model.component_table(), model.encoder.sizes
    full = table.cost(sizes["full"]).flops
    own = {name: table.cost(subnet).flops - table.rest.flops for name, subnet in sizes.items()}
    stage_1 = (table.rest.flops + 2 * own["full"]) / full
    stage_2 = (table.rest.flops + sum(own.values())) / full
    assert model.subnet_trainer.model_steps(table, 5) == pytest.approx(2 * stage_1 + 3 * stage_2)


def test_updates_of_a_size_are_counted_apart_from_those_with_gates() -> None:
    model = learner(warmup_steps=2, stage1_steps=6)
    train(model, range(7), adam(model))
    counts = model.subnet_trainer.size_updates(model.encoder.sizes, 10)
    assert counts["full"] == SizeUpdates(10)
    assert counts["small"].sliced == counts["middle"].sliced == 4  # one other size is drawn in a step: the only one
    assert counts["small"].gated + counts["middle"].gated == 4
