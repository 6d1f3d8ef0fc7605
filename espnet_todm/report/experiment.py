"""What an experiment folder holds about each size: cost, speed and scores. What was not measured is None."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from espnet_todm.card import CARD, WEIGHTS
from espnet_todm.components import FULL
from espnet_todm.decode.options import SEARCH
from espnet_todm.errors import UserError
from espnet_todm.scoring.scores import Score, read_score, split_label
from espnet_todm.util.checks import is_number
from espnet_todm.util.files import PathLike, read_optional


@dataclass(frozen=True)
class SizeResult:
    """One size. params: count; flops_per_second: per second of speech; share_of_params: of the full size, in [0, 1].

    encoder_shares: of the full encoder, by criterion.
    speed: what rtf.json says (``rtf_median``, ``rtf_p95``, ``threads``, ``cpu``, ``utterances``); scores: by set.
    file_bytes: of model.safetensors.
    """

    name: str
    params: Optional[float] = None
    flops_per_second: Optional[float] = None
    share_of_params: Optional[float] = None
    encoder_shares: dict[str, float] = field(default_factory=dict)
    speed: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    file_bytes: Optional[int] = None

    @property
    def rtf(self) -> Optional[float]:
        """Median real-time factor."""
        value = self.speed.get("rtf_median")
        return value if is_number(value) else None


@dataclass(frozen=True)
class Experiment:
    """All sizes, the largest first, the sets they were scored on, and the cost of training (cost.json) if measured.

    searches: set/size -> options of its search (search.json).
    """

    folder: Path
    sizes: tuple[SizeResult, ...]
    splits: tuple[str, ...]
    training_cost: dict[str, Any] = field(default_factory=dict)
    searches: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    def scores(self) -> list[Score]:
        """All scores, set by set and in each from the largest size down."""
        return [size.scores[split] for split in self.splits for size in self.sizes if split in size.scores]


def load_experiment(folder: PathLike) -> Experiment:
    """Read ``decode*/<set>/<size>/{score,search}.json``, ``subnets/<size>/{card,rtf}.json``, ``cost.json``.

    Raises UserError when the folder is missing, was never scored, or holds a file that is not what its name says.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root}: no such experiment folder")
    scores: dict[str, dict[str, Score]] = {}
    searches: dict[str, dict[str, Any]] = {}
    for path in sorted(root.glob("decode*/*/*/score.json")):
        decode, split, size, _ = path.relative_to(root).parts
        label = split_label(split, decode)
        scores.setdefault(size, {})[label] = read_score(path)
        searches[f"{label}/{size}"] = read_optional(path.parent / SEARCH)
    if not scores:
        raise UserError(f"{root}: no decode/<set>/<size>/score.json; score the experiment first")
    names = {path.parent.name for path in root.glob("subnets/*/card.json")} | set(scores)
    sizes = sorted((_load_size(root / "subnets" / name, scores.get(name, {})) for name in names), key=_largest_first)
    splits = sorted({split for by_split in scores.values() for split in by_split})
    return Experiment(root, tuple(sizes), tuple(splits), read_optional(root / "cost.json"), searches)


def _load_size(folder: Path, scores: dict[str, Score]) -> SizeResult:
    weights = folder / WEIGHTS
    card = folder / CARD
    cost = read_optional(card).get("cost", {})
    if not isinstance(cost, dict):
        raise UserError(f"{card}: cost is {cost!r}, but it must be an object with params and more")
    return SizeResult(
        folder.name,
        _number(cost, "params", card),
        _number(cost, "flops_per_second", card),
        _number(cost, "share_of_params", card),
        dict(cost.get("encoder_shares", {})),
        read_optional(folder / "rtf.json"),
        scores,
        weights.stat().st_size if weights.is_file() else None,
    )


def _number(values: dict[str, Any], key: str, path: Path) -> Optional[float]:
    value = values.get(key)
    if value is not None and not is_number(value):
        raise UserError(f"{path}: {key} is {value!r}, but it must be a number")
    return value


def _largest_first(size: SizeResult) -> tuple[bool, float, str]:
    """Sort key: the full size, then by parameters, those without a known number last."""
    return size.name != FULL, -(size.params or 0), size.name
