"""A training that is done, as a report needs it: read from its experiment, or from a small file that stands for it.

Such a file holds costs, the word errors of each utterance, and the number of components that training chose for each size.
Trainings of several machines, or of experiments that are gone, make one report in that way.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

from espnet_todm.components import FULL, ComponentTable
from espnet_todm.errors import UserError, damage_told
from espnet_todm.models.subnet_trainer import SizeUpdates
from espnet_todm.report.comparison.plan import Method
from espnet_todm.report.comparison.training import Training, read_training
from espnet_todm.report.comparison.twins import card_of, chooses_sizes, kept_by_card
from espnet_todm.report.experiment import SizeResult, load_experiment
from espnet_todm.scoring.scores import Score
from espnet_todm.util.files import PathLike, atomic_path
from espnet_todm.util.stage_marker import as_recorded

FORMAT = "espnet_todm.training/1"
SUFFIX = ".json.gz"
COSTS = ("params", "flops_per_second", "share_of_params", "encoder_shares")


@dataclass(frozen=True)
class Trained:
    """sizes: with costs and scores; splits: sets that they were scored on; kept: size -> module -> components in each layer,
    for sizes that training chose; experiment: its folder, None where only the file is there."""

    method: Method
    sizes: tuple[SizeResult, ...]
    splits: tuple[str, ...]
    training: Training
    kept: Mapping[str, Mapping[str, list[int]]]
    experiment: Optional[Path] = None

    def size(self, name: str) -> Optional[SizeResult]:
        return next((size for size in self.sizes if size.name == name), None)

    def score(self, size: str, split: str) -> Optional[Score]:
        result = self.size(size)
        return result.scores.get(split) if result else None


def from_experiment(method: Method, folder: Path) -> Trained:
    """Raises UserError when something is missing there."""
    experiment = load_experiment(folder)
    kept = chosen_there(method, folder)
    return Trained(method, experiment.sizes, experiment.splits, read_training(folder), kept, folder)


def chosen_there(method: Method, folder: Path) -> dict[str, dict[str, list[int]]]:
    """Size -> what it keeps (see ``kept_by_card``), for sizes whose components the experiment's training chose."""
    if not chooses_sizes(method.config):
        return {}
    table = encoder_table(folder)
    return {size: kept_by_card(size, card_of(folder, size), table) for size in method.sizes if size != FULL}


def encoder_table(experiment: Path) -> ComponentTable:
    """The components of an experiment's encoder."""
    from espnet_todm.report.selection_page import load_encoder

    return load_encoder(experiment)[0].component_table()


def write_trained(trained: Trained, path: PathLike) -> None:
    """The same training gives the same bytes."""
    content = {
        "format": FORMAT,
        "name": trained.method.name,
        "config": as_recorded(dict(trained.method.config)),
        # Costs are sums over sets, whose order changes from process to process, and with it the last digits.
        "training": {**asdict(trained.training), "model_steps": round(trained.training.model_steps, 6)},
        "kept": trained.kept,
        "costs": {size.name: {key: getattr(size, key) for key in COSTS} for size in trained.sizes},
        "scores": {split: _stored_scores(trained, split) for split in trained.splits},
    }
    data = json.dumps(as_recorded(content), separators=(",", ":")).encode()
    with atomic_path(path) as temporary:
        temporary.write_bytes(gzip.compress(data, mtime=0))


def _stored_scores(trained: Trained, split: str) -> dict[str, Any]:
    """Names and lengths of utterances once, and for each size their edits: correct, substituted, deleted, inserted words."""
    scores = {size.name: size.scores[split] for size in trained.sizes if split in size.scores}
    names = next(iter(scores.values())).utterances
    for score in scores.values():
        if score.utterances != names:
            raise UserError(f"{trained.experiment}: {split}/{score.size} has other utterances; score all sizes again")
    return {
        "utterances": list(names),
        "edits": {size: score.edits["words"].T.tolist() for size, score in scores.items()},
        "missing": {size: score.missing for size, score in scores.items()},
        "case_sensitive": {size: score.case_sensitive for size, score in scores.items()},
    }


def config_of(path: PathLike) -> Optional[Any]:
    """The configuration that a file's training was made with; None without such a file."""
    return _read(path)["config"] if Path(path).is_file() else None


def read_trained(method: Method, path: PathLike) -> Trained:
    """Raises UserError for a file that is none of ``write_trained``."""
    stored = _read(path)
    try:
        training = Training(**{**stored["training"], "size_updates": _updates(stored["training"])})
        scores: dict[str, dict[str, Score]] = {}
        for split, of_split in stored["scores"].items():
            for size, edits in of_split["edits"].items():
                rows = {"words": np.array(edits, dtype=np.int64).reshape(4, -1).T}
                facts = of_split["missing"][size], of_split["case_sensitive"][size]
                score = Score(split, size, tuple(of_split["utterances"]), rows, *facts)
                scores.setdefault(size, {})[split] = score
        sizes = tuple(SizeResult(name, **costs, scores=scores.get(name, {})) for name, costs in stored["costs"].items())
        return Trained(method, sizes, tuple(stored["scores"]), training, stored["kept"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not the results of a training ({error!r}); remove it") from None


def _updates(training: Mapping[str, Any]) -> dict[str, SizeUpdates]:
    return {size: SizeUpdates(**updates) for size, updates in training["size_updates"].items()}


def _read(path: PathLike) -> dict[str, Any]:
    with damage_told(path, "remove it"):
        stored = json.loads(gzip.decompress(Path(path).read_bytes()))
    if not isinstance(stored, dict) or stored.get("format") != FORMAT or "config" not in stored:
        raise UserError(f"{path}: not the results of a training in the format {FORMAT}; remove it")
    return stored
