"""Twins: the sizes of a method, each trained alone with the same components for as many updates.

A size may be better or worse than a model trained alone for two reasons: its architecture, and the sharing of weights. A
twin has the architecture and does not share. A size that the configuration defines has its twin in the plan from the start.
A size whose components training chooses has its twin once that training has written the card.

Twins that are equal except for their name are trained once. The full size is one of them for all methods that change
nothing but the training of the smaller sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Optional

from espnet_todm.card import read_card
from espnet_todm.components import FULL, ComponentTable, Subnet
from espnet_todm.encoders.options import SUPERNET_OPTIONS
from espnet_todm.errors import UserError
from espnet_todm.sizes import module_sizes
from espnet_todm.util.checks import is_number
from espnet_todm.util.files import PathLike

# Options that only matter where several sizes share weights; a size alone is trained without them.
OF_SHARING = {
    "encoder_conf": ("own_affine", "own_branch_scale"),
    "model_conf": ("output_layers", "distil_attention"),
}
TOLERANCE = 0.02  # relative difference in parameters and FLOPs between a size and its twin


@dataclass(frozen=True)
class TwinPlan:
    """A training of one size alone.

    compared_with: name of the base's twin of this size, if it is another one. learned_by: the method that chooses its
    components; empty if the configuration does.
    """

    name: str
    size: str
    config: Mapping[str, Any]
    compared_with: str = ""
    learned_by: str = ""


class Twins(NamedTuple):
    """``of``: method -> size -> name of its twin; ``plans``: all twins to train."""

    of: Mapping[str, Mapping[str, str]]
    plans: list[TwinPlan]


def plan_twins(methods: Mapping[str, Mapping[str, Any]], base: Mapping[str, Any], alone: Any) -> Twins:
    """The twins of the methods (name -> configuration).

    alone: false for none; true for the sizes of the base, which are the twins of all methods' sizes of these names; "sets"
    for the sizes of each method; "both" for both, where the twin is that of the method.
    """
    of_base = {size: f"alone {size}" for size in (FULL, *base["encoder_conf"]["sizes"])}
    plans = [TwinPlan(of_base[size], size, alone_config(base, size)) for size in of_base]
    if alone in (False, True):
        of = {
            name: {size: of_base[size] for size in _sizes(config) if alone and size in of_base}
            for name, config in methods.items()
        }
        return Twins(of, plans if alone else [])
    known = {_identity(base, size): plan for size, plan in zip(of_base, plans)}
    wanted = [plan.name for plan in plans] if alone == "both" else []
    found: dict[str, dict[str, str]] = {}
    for name, size, config in _trained_sizes(methods):
        learned = size != FULL and chooses_sizes(config)
        identity = f"{name} {size}" if learned else _identity(config, size)
        if identity not in known:
            reference = of_base.get(size, "") if alone == "both" else ""
            twin = alone_config(config, size)
            known[identity] = TwinPlan(f"alone {size} of {name}", size, twin, reference, name if learned else "")
        found.setdefault(name, {})[size] = known[identity].name
        wanted.append(known[identity].name)
    return Twins(
        {name: found.get(name, {}) for name in methods}, [plan for plan in known.values() if plan.name in wanted]
    )


def _sizes(config: Mapping[str, Any]) -> tuple[str, ...]:
    return (FULL, *config["encoder_conf"]["sizes"])


def _trained_sizes(methods: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(method, size, configuration) of all sizes that share weights."""
    for name, config in methods.items():
        if config.get("subnet_trainer") != "single":
            yield from ((name, size, config) for size in _sizes(config))


def alone_config(config: Mapping[str, Any], size: str) -> dict[str, Any]:
    """The configuration that trains this size of ``config`` alone, for as many updates."""
    rest = {key: _without_sharing(key, value) for key, value in config.items() if key != "subnet_trainer_conf"}
    single = {"subnet_trainer": "single", "subnet_trainer_conf": {"size": size}}
    only_ctc = (config.get("model_conf") or {}).get("ctc_weight", 1.0) == 1.0
    return {**rest, **single, "best_model_criterion": [["valid", f"{'cer_ctc' if only_ctc else 'loss'}_{size}", "min"]]}


def _without_sharing(section: str, options: Any) -> Any:
    if section not in OF_SHARING or not isinstance(options, Mapping):
        return options
    return {key: value for key, value in options.items() if key not in OF_SHARING[section]}


def _identity(config: Mapping[str, Any], size: str) -> str:
    """What the training of one size alone depends on, as text: two equal ones are one training."""
    spec = None if size == FULL else config["encoder_conf"]["sizes"][size]
    ignored = SUPERNET_OPTIONS if not is_number(spec) else ("sizes", "subnet")  # a share depends on the criterion
    parts = alone_config(config, size)
    parts["encoder_conf"] = {key: value for key, value in parts["encoder_conf"].items() if key not in ignored}
    return repr((spec, _ordered({key: value for key, value in parts.items() if value not in ({}, None)})))


def _ordered(value: Any) -> Any:
    if isinstance(value, Mapping):
        return sorted((str(key), _ordered(one)) for key, one in value.items())
    return value


def chooses_sizes(config: Mapping[str, Any]) -> bool:
    """Whether training with this configuration chooses the components of its sizes.

    ``uniform`` by components is no such training: it has the sets that a plain share has anyway.
    """
    from espnet_todm.trainers.known import trainers
    from espnet_todm.trainers.two_stage import TwoStageTrainer

    name, conf = config.get("subnet_trainer"), config.get("subnet_trainer_conf") or {}
    trainer = trainers().get(str(name))
    if trainer is None or not issubclass(trainer, TwoStageTrainer):
        return False
    uniform = "uniform" in (name, conf.get("selection")) and conf.get("granularity", "component") == "component"
    return not (uniform and config["encoder_conf"].get("share_shape", "uniform") == "uniform")


def kept_by_card(size: str, card: PathLike, table: ComponentTable) -> dict[str, list[int]]:
    """Module -> number of components in each layer that a card keeps. table: of the encoder that chose them.

    A module's components are interchangeable, so their number is all that a fresh encoder needs. That holds after training
    has sorted them, too. Raises UserError for a card of another encoder.
    """
    subnet = Subnet.from_json(size, read_card(card)["kept"])
    try:
        table.cost(subnet)
    except UserError as error:
        raise UserError(f"{card}: is the card of another encoder: {error}") from None
    kept: dict[str, list[int]] = {}
    for layer, module in module_sizes(table):
        kept.setdefault(module, [0] * table.num_layers)[layer] = len(subnet.layers.get(layer, {}).get(module, ()))
    return kept


def learned_config(config: Mapping[str, Any], size: str, kept: Mapping[str, list[int]]) -> dict[str, Any]:
    """``config`` of a twin whose size keeps these numbers of components (see ``kept_by_card``)."""
    encoder = {key: value for key, value in config["encoder_conf"].items() if key not in SUPERNET_OPTIONS}
    return {**config, "encoder_conf": {**encoder, "sizes": {size: dict(kept)}}}


def check_twin(
    size: str, method: str, costs: Mapping[str, Optional[float]], twin: str, others: Mapping[str, Optional[float]]
) -> None:
    """Raises UserError if a size and its twin differ by more than TOLERANCE in one of their costs (name -> value)."""
    for name, value in costs.items():
        other = others.get(name)
        if value and other and abs(other / value - 1) > TOLERANCE:
            raise UserError(
                f"{twin}: has {other:g} {name}, but {size} of {method} has {value:g}; a twin must have the same within"
                f" {100 * TOLERANCE:g}%; was it trained with the card of another encoder?"
            )


def card_of(experiment: PathLike, size: str) -> Path:
    """The card that a training writes when it chooses the components of a size."""
    from espnet_todm.trainers.selection_log import CARDS

    return Path(experiment) / CARDS / f"{size}.json"
