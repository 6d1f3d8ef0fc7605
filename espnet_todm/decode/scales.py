"""Tunes the scales of language model, word score and prior for the fewest word errors on a set, separately for each
size.

The posteriors are computed once. The search then runs repeatedly on them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from espnet_todm.card import WEIGHTS
from espnet_todm.decode.decode import Decoder, decode
from espnet_todm.decode.features import read_features
from espnet_todm.decode.options import PREFIX, SearchOptions
from espnet_todm.decode.searches import make_beam, make_search, read_words
from espnet_todm.errors import UserError
from espnet_todm.espnet.load import load_extracted
from espnet_todm.scoring.alignment import align
from espnet_todm.util.files import PathLike, hash_file, read_json, read_table, write_json
from espnet_todm.util.stage_marker import atomic_stage

FOLDER, SCALES, PRIOR = "lm_scales", "scales.json", "prior.json"
Point = tuple[float, ...]  # lm_weight, word_score, prior_weight
NAMES = ("lm_weight", "word_score", "prior_weight")
_STEPS = (0.4, 1.0, 0.2)
_LEAST = (0.0, -np.inf, 0.0)
_HALVINGS = 2  # down to steps of 0.1, 0.25 and 0.05
_FLOOR = 1e-4  # lower bound of the prior: a token without posterior must not win by its prior


@dataclass(frozen=True)
class Tuning:
    """One job: the folder of an extracted model, the input and the text of the set, and the output folder.

    utterances: how many of the set are used, evenly spread. search: of kind "prefix"; its scales are a starting point.
    """

    model: str
    scp: str
    text: str
    output: str
    utterances: int
    search: SearchOptions


def tune_scales(work: Tuning) -> dict[str, Any]:
    """Write ``prior.json`` and ``scales.json`` into the folder ``work.output``; returns the content of the latter.

    The prior of a token is its mean posterior on the set. The chosen scales make no more errors on the set than scales
    of 0 and than those of ``work.search``, since both are tried first.
    Raises UserError if a file is missing or the model has no CTC output.
    """
    if work.search.kind != PREFIX:
        raise UserError(f"search: {work.search.kind!r} has no scales to tune; allowed: {PREFIX}")
    files = (work.scp, work.text, Path(work.model) / WEIGHTS, work.search.lm, work.search.lexicon)
    digests = [hash_file(path) if path else None for path in files]
    options = {"stage": "scales", "utterances": work.utterances, "search": asdict(work.search), "input": digests}
    with atomic_stage(work.output, options) as folder:
        if folder is not None:
            write_json(folder / SCALES, _tune(work, folder))
    found: dict[str, Any] = read_json(Path(work.output) / SCALES)
    return found


def scaled(options: SearchOptions, folder: PathLike) -> SearchOptions:
    """The options with the scales and the prior from ``tune_scales``. Raises UserError if their files do not exist."""
    path = Path(folder) / SCALES
    stored = read_json(path)
    if not isinstance(stored, dict) or not all(name in stored for name in NAMES):
        raise UserError(f"{path}: holds no scales; tune_lm makes it")
    return replace(options, **{name: stored[name] for name in NAMES}, prior=str(Path(folder) / PRIOR))


def lowest(
    errors: Callable[[Point], int], starts: Sequence[Point], steps: Sequence[float], least: Sequence[float]
) -> dict[Point, int]:
    """Pattern search (Hooke and Jeeves, 1961): steps in each coordinate as long as they help, then steps of half the
    size.

    starts: points that are tried first; least: lower bounds; a step of 0 keeps its coordinate fixed.
    Returns all tried points and their errors in this order, the best one last.
    """
    tried: dict[Point, int] = {}

    def ask(point: Point) -> int:
        if point not in tried:
            tried[point] = errors(point)
        return tried[point]

    best = min(starts, key=ask)
    for halving in range(_HALVINGS + 1):
        improved = True
        while improved:
            improved = False
            for axis, step in enumerate(steps):
                for move in (step / 2**halving, -step / 2**halving):
                    moved = max(least[axis], round(best[axis] + move, 4))
                    other = (*best[:axis], moved, *best[axis + 1 :])
                    if ask(other) < ask(best):
                        best, improved = other, True
                        break
    return {**{point: count for point, count in tried.items() if point != best}, best: tried[best]}


def _tune(work: Tuning, folder: Path) -> dict[str, Any]:
    """Content of scales.json; writes prior.json into ``folder``."""
    decoder = Decoder(*load_extracted(work.model))
    make_search(decoder.model, SearchOptions(PREFIX))  # raises errors before the posteriors are computed
    references, posteriors = _read(work, decoder)
    prior = str(folder / PRIOR)
    write_json(prior, {"log_prior": log_prior(list(posteriors.values()))})
    vocabulary, silent = decoder.tokens, decoder.forbidden
    words = read_words(vocabulary, silent, work.search)

    def errors(point: Point) -> int:
        weight, word_score, prior_weight = point
        options = replace(work.search, lm_weight=weight, word_score=word_score, prior_weight=prior_weight, prior=prior)
        search = make_beam(vocabulary, decoder.model.blank_id, silent, options, words)
        heard = {name: decoder.text(search(rows)) for name, rows in posteriors.items()}
        total = sum(sum(align(text.split(), heard[name].split())[1:]) for name, text in references.items())
        logging.info("%s: %d word errors", ", ".join(f"{n} {value:g}" for n, value in zip(NAMES, point)), total)
        return total

    start = tuple(getattr(work.search, name) for name in NAMES)
    steps = _STEPS if work.search.lm else (0.0, *_STEPS[1:])
    tried = lowest(errors, [(0.0, 0.0, 0.0), start], steps, _LEAST)
    *_, (best, count) = tried.items()
    return {
        **dict(zip(NAMES, best)),
        "errors": count,
        "errors_without": tried[0.0, 0.0, 0.0],
        "words": sum(len(text.split()) for text in references.values()),
        "utterances": len(references),
        "tried": [[*point, errors] for point, errors in tried.items()],
    }


def _read(work: Tuning, decoder: Decoder) -> tuple[dict[str, str], Mapping[str, np.ndarray]]:
    """The words and log posteriors (T, V) of the selected utterances."""
    texts = read_table(work.text)
    step = max(1, -(-len(read_table(work.scp)) // work.utterances))
    chosen = islice(read_features(work.scp), 0, None, step)
    posteriors = dict(decode(decoder.log_posteriors, chosen))
    missing = next((name for name in posteriors if name not in texts), None)
    if missing is not None:
        raise UserError(f"{work.text}: has no text of utterance {missing!r} of {work.scp}")
    return {name: texts[name] for name in posteriors}, posteriors


def log_prior(posteriors: Sequence[np.ndarray]) -> list[float]:
    """(V,) natural logarithm of the mean posterior over all frames of log posteriors (T, V)."""
    mean = np.exp(np.concatenate(posteriors).astype(np.float64)).mean(0)
    return [float(value) for value in np.log(np.maximum(mean, _FLOOR))]
