"""Converts sizes from a configuration into sets of components, for any encoder with a component table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Union, get_args

from torch import nn

from espnet_todm.components import FULL, ComponentTable, Key, Subnet
from espnet_todm.errors import UserError
from espnet_todm.util.checks import check_choice, is_number
from espnet_todm.util.units import format_amount

Counts = Mapping[tuple[int, str], int]  # components kept of (layer, module): the first ones
SizeSpec = Union[float, Mapping[str, Any]]
ShareShape = Literal["uniform", "ffn_first"]
PARTS_OF_LOSS = ("ctc", "att", "transducer")  # ESPnet's names in statistics
MLP_KINDS = ("cgmlp", "ffn")  # kinds with hidden units; ffn_first cuts the last of them first
ROUNDING = 1e-9  # relative tolerance of budgets: sums of FLOPs or seconds in another order differ by less


def resolve_sizes(
    specs: Mapping[str, SizeSpec], table: ComponentTable, criterion: str = "params", shape: ShareShape = "uniform"
) -> dict[str, Subnet]:
    """Named sizes of a supernet, largest first; the size "full" always exists.

    A size is either a share of the full cost by ``criterion``, as in ``small: 0.4``, cut as ``shape`` says
    (:func:`share_order`), or a mapping of

    - ``depth``: share of the layers, or ``layers``: the list of layers to keep,
    - ``drop``: which layers depth removes: ``even`` (default), ``last`` or ``first``,
    - a kind (``ffn``, ``heads``, ``conv``) or a module's name: a share in [0, 1], true or false, or a list with the
      number of components to keep in each layer of the supernet.

    Sizes are ordered by ``criterion``. Raises UserError for unknown keys, values out of range, a size that keeps
    nothing, and two plain shares that are equal or give the same set.
    """
    if not isinstance(specs, Mapping):
        raise UserError(f"sizes: {specs!r} must be a mapping from names to sizes, such as {{small: 0.4}}")
    sizes = {FULL: table.full()}
    for name, spec in specs.items():
        _check_name(str(name))
        sizes[str(name)] = resolve_size(str(name), spec, table, criterion, shape)
    _check_distinct({str(name): spec for name, spec in specs.items() if is_number(spec)}, sizes, criterion)
    return dict(sorted(sizes.items(), key=lambda item: -table.amount(item[1], criterion)))


def _check_distinct(shares: Mapping[str, SizeSpec], sizes: Mapping[str, Subnet], criterion: str) -> None:
    """Raises UserError if two shares give one set, which would be trained, extracted and reported twice."""
    names: dict[frozenset[Key], str] = {}
    for name, share in shares.items():
        other = names.setdefault(sizes[name].components, name)
        if other == name:
            continue
        if shares[other] == share:
            raise UserError(f"sizes.{name}: {share} is the share of {other!r} already; each size needs its own")
        raise UserError(
            f"sizes.{name}: {share} of the {criterion} is the same set of components as {other!r}: {shares[other]};"
            f" leave one out, move them apart, or cut the encoder finer"
        )


def _check_name(name: str) -> None:
    """Raises UserError for names that cannot be a folder, a key of statistics, or a key of a ModuleDict (which does not
    accept the names of its own attributes).
    """
    if name == FULL:
        raise UserError(f"sizes: {FULL!r} is the whole supernet and cannot be redefined")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(f"sizes: the name {name!r} is not possible; allowed: letters, digits, _ and -")
    if name in PARTS_OF_LOSS:
        raise UserError(
            f"sizes: the name {name!r} is not possible: loss_{name} is a part of ESPnet's loss; choose another"
        )
    if hasattr(nn.ModuleDict(), name):
        raise UserError(f"sizes: the name {name!r} is taken by torch; choose another, such as {name + '_size'!r}")


def resolve_size(
    name: str, spec: SizeSpec, table: ComponentTable, criterion: str = "params", shape: ShareShape = "uniform"
) -> Subnet:
    """One size; see :func:`resolve_sizes`."""
    if isinstance(spec, (int, float)) and not isinstance(spec, bool):
        if not 0 < spec <= 1:
            raise UserError(f"sizes.{name}: {spec} is no share of the {criterion}; allowed: above 0, up to 1")
        return fit_budget(name, table, criterion, spec * table.amount(table.full(), criterion), shape)
    if not isinstance(spec, Mapping):
        raise UserError(
            f"sizes.{name}: {spec!r} must be a share in (0, 1] or a mapping such as {{depth: 0.5, ffn: 0.5}}"
        )
    totals = module_sizes(table)
    allowed = {"depth", "layers", "drop", *table.kinds, *(module for _, module in totals)}
    for key in spec:
        if key not in allowed:
            raise UserError(f"sizes.{name}: unknown key {key!r}; allowed: {', '.join(sorted(allowed))}")
    layers = set(_layers(name, spec, table.num_layers))
    kinds = {(c.key.layer, c.key.module): c.kind for c in table.components}
    counts = {}
    for (layer, module), total in totals.items():
        value = spec.get(module, spec.get(kinds[layer, module], 1.0))
        where = f"sizes.{name}.{module if module in spec else kinds[layer, module]}"
        counts[layer, module] = _count(where, value, layer, table.num_layers, total) if layer in layers else 0
    subnet = first_components(name, counts)
    if not subnet.components:
        raise UserError(f"sizes.{name}: keeps no component at all; give it at least one")
    return subnet


def first_components(name: str, counts: Counts) -> Subnet:
    """The subnet that keeps the first ``counts[layer, module]`` components of each module. They are adjacent, so slices
    are views.
    """
    return Subnet(name, frozenset(Key(la, module, i) for (la, module), n in counts.items() for i in range(n)))


def module_sizes(table: ComponentTable) -> dict[tuple[int, str], int]:
    """Number of components of every (layer, module), in the order of the table."""
    totals: dict[tuple[int, str], int] = {}
    for component in table.components:
        place = component.key.layer, component.key.module
        totals[place] = totals.get(place, 0) + 1
    return totals


def keep_order(layers: int, drop: str = "even") -> list[int]:
    """Layers by importance: depth n keeps the first n, so that depths are nested.

    ``even`` starts with the first and the last layer, and then repeatedly adds the middle layer of the widest gap.
    """
    if drop == "last":
        return list(range(layers))
    if drop == "first":
        return list(reversed(range(layers)))
    check_choice("drop", drop, ("even", "last", "first"))
    order = sorted({0, layers - 1})
    while len(order) < layers:
        kept = sorted(order)
        width, start = max((b - a, -a) for a, b in zip(kept, kept[1:]))
        order.append(-start + width // 2)
    return order


def round_share(share: float, total: int) -> int:
    """The number of components nearest to a share; at least one unless the share is 0."""
    return min(total, max(1, int(share * total + 0.5))) if share > 0 else 0


def uniform(name: str, table: ComponentTable, share: float, kinds: Iterable[str]) -> Subnet:
    """Depth and the given kinds all scaled by the same share; other kinds stay complete."""
    layers = set(keep_order(table.num_layers)[: round_share(share, table.num_layers)])
    scaled = {(c.key.layer, c.key.module) for c in table.components if c.kind in set(kinds)}
    return first_components(
        name,
        {
            place: (round_share(share, total) if place in scaled else total) if place[0] in layers else 0
            for place, total in module_sizes(table).items()
        },
    )


def fit_budget(
    name: str, table: ComponentTable, criterion: str, budget: float, shape: ShareShape = "uniform"
) -> Subnet:
    """The smallest set of a shape, then more components in its order (:func:`share_order`), as long as they fit the
    budget.

    All budgets use the same order of components, so the set of a smaller budget is inside that of a larger one.
    Budgets are in parameters, or in FLOPs or seconds of compute per second of speech. Raises UserError, with the
    feasible range, if the budget is below the smallest set or above the full set, and for an unknown shape.
    """
    smallest, following = share_order(table, shape)
    lowest, highest = table.amount(smallest, criterion), table.amount(table.full(), criterion)
    if not lowest * (1 - ROUNDING) <= budget <= highest * (1 + ROUNDING):
        raise UserError(
            f"budget of {format_amount(budget)} {criterion} for {name!r} is infeasible; this supernet allows"
            f" {format_amount(lowest)} to {format_amount(highest)}"
        )
    spent = table.running_cost([smallest.components, *([key] for key in following)])[1:]
    # Keep a prefix: a later component might fit alone, but then sizes would not be nested. Costs never decrease.
    fitting = sum(cost.by(criterion) <= budget * (1 + ROUNDING) for cost in spent)
    return Subnet(name, smallest.components.union(following[:fitting]))


def share_order(table: ComponentTable, shape: ShareShape = "uniform") -> tuple[Subnet, list[Key]]:
    """The smallest set of a plain share, and all other components in the order in which larger shares add them.

    - ``uniform``: depth and all kinds but convolutions grow together, see :func:`uniform`.
    - ``ffn_first``: what is cut first is the second feed-forward module of each block, then the first one down to its
      first component, then cgMLPs down to theirs, each evenly over all blocks. The rest (convolutions, heads and
      these first components) is then cut as with ``uniform``.

    Raises UserError for an unknown shape.
    """
    check_choice("share_shape", shape, get_args(ShareShape))
    cut = _first_cut(table) if shape == "ffn_first" else []
    rest = replace(table, components=tuple(c for c in table.components if c.key not in set(cut))) if cut else table
    smallest = _smallest_scaling(rest)
    return smallest, [*uniform_order(rest)[len(smallest.components) :], *cut]


def _first_cut(table: ComponentTable) -> list[Key]:
    """The units that ``ffn_first`` cuts before anything else; the last of the list is cut first.

    A block keeps the first unit of one feed-forward module and of its cgMLP, which contains the block's convolution.
    """
    places = {layer: place for place, layer in enumerate(keep_order(table.num_layers))}
    modules: dict[tuple[int, str], list[str]] = {}  # (layer, kind) -> modules in the order in which they run
    ranked = []
    for key, kind in ((component.key, component.kind) for component in table.components):
        alike = modules.setdefault((key.layer, kind), [])
        if key.module not in alike:
            alike.append(key.module)
        number = alike.index(key.module)
        if kind in MLP_KINDS and (number, key.index) != (0, 0):
            ranked.append((MLP_KINDS.index(kind), number, key.index, places[key.layer], key))
    return [key for *_, key in sorted(ranked)]


def uniform_order(table: ComponentTable) -> list[Key]:
    """All components, in the order in which increasingly large uniform scalings add them."""
    order: dict[Key, None] = {}
    for scaling in _scalings(table):
        order.update(dict.fromkeys(sorted(scaling.components - order.keys(), key=lambda key: (key.index, key))))
    return list(order)


def _smallest_scaling(table: ComponentTable) -> Subnet:
    return next(_scalings(table))


def _scalings(table: ComponentTable) -> Iterator[Subnet]:
    """Uniform scalings from the smallest share to the full set. Each is inside the next."""
    kinds = [kind for kind in table.kinds if kind != "conv"]  # whole convolutions matter too much to be scaled away
    return (uniform("", table, step / 200, kinds) for step in range(1, 201))


def _layers(name: str, spec: Mapping[str, Any], total: int) -> Sequence[int]:
    if "layers" in spec:
        layers = spec["layers"]
        for other in ("depth", "drop"):
            if other in spec:
                raise UserError(f"sizes.{name}: has both layers and {other}; allowed: one of them")
        if not isinstance(layers, (list, tuple)) or not layers or not all(_is_count(la, total - 1) for la in layers):
            raise UserError(f"sizes.{name}.layers: {layers!r} must be a list of layers out of 0..{total - 1}")
        return layers
    depth = spec.get("depth", 1.0)
    if not is_number(depth) or not 0 < depth <= 1:
        raise UserError(f"sizes.{name}.depth: {depth!r} must be a share of the {total} layers, above 0 and up to 1")
    return keep_order(total, spec.get("drop", "even"))[: round_share(depth, total)]


def _count(where: str, value: Any, layer: int, layers: int, total: int) -> int:
    if isinstance(value, (list, tuple)):
        if len(value) != layers:
            raise UserError(f"{where}: has {len(value)} entries, but the supernet has {layers} layers")
        if not _is_count(value[layer], total):
            raise UserError(f"{where}[{layer}]: {value[layer]!r} must be a number of components, 0 to {total}")
        return int(value[layer])
    if not isinstance(value, (bool, int, float)) or not 0 <= value <= 1:
        raise UserError(
            f"{where}: {value!r} must be a share in [0, 1], true or false, or a list with one count a layer"
        )
    return round_share(float(value), total)


def _is_count(value: Any, highest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= highest
