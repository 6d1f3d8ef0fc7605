"""Which size to take, in a line or two, as far as the scored sets can tell."""

from __future__ import annotations

from typing import Optional

from espnet_todm.report.experiment import Experiment, SizeResult
from espnet_todm.scoring.scores import Score
from espnet_todm.scoring.significance import Difference, paired_difference

USELESS = 60.0
"""Word error rate in percent above which a model is no use, and its size no matter."""

MANY_WORDS = 5000
"""Reference words from which on an interval is narrow enough to choose by."""


def advice_lines(experiment: Experiment) -> list[str]:
    """Names the smallest size that no set shows to be worse than the largest, and what each size below it loses.

    A set shows it when the 95% interval of the paired difference lies above 0. Of several searches of the same utterances,
    the one that the largest size is best with counts. Empty without two costed sizes that were scored on the same
    utterances.
    """
    costed = [size for size in experiment.sizes if size.params is not None and size.scores]
    if not costed:
        return []
    largest, *smaller = costed
    counting = _best_searches(largest)
    losses = {size.name: _losses(size, counting) for size in smaller}
    compared = [size for size in smaller if losses[size.name]]
    if not compared:
        return []
    best = min(score.total().error_rate for score in counting.values())
    if best > USELESS:
        return [
            f"Which size: none yet; with a word error rate of {best:.0f}% even {largest.name} has not learned enough."
        ]
    words = sum(score.total().words for score in counting.values())
    as_good = [size for size in compared if all(found.low <= 0 for found in losses[size.name].values())]
    lines = [_choice(largest, as_good[-1] if as_good else None, words)]
    below = compared[compared.index(as_good[-1]) + 1 :] if as_good else compared
    if below:
        prices = [f"{size.name} {_price(size, largest, losses[size.name])}" for size in below]
        lines.append(f"Smaller sizes cost words: {'; '.join(prices)}. Take the largest that your device has time for.")
    return lines


def _best_searches(largest: SizeResult) -> dict[str, Score]:
    """Set -> score, one for each set of utterances: what a user of the model would search with, as far as was tried."""
    best: dict[tuple[str, ...], tuple[str, Score]] = {}
    for split, score in largest.scores.items():
        _, other = best.get(score.utterances, ("", None))
        if other is None or _rank(score) < _rank(other):
            best[score.utterances] = split, score
    return dict(best.values())


def _rank(score: Score) -> tuple[int, float]:
    """Lower is better. Words come before their phonemes, which are more of the same references."""
    total = score.total()
    return total.words, total.error_rate


def _losses(size: SizeResult, counting: dict[str, Score]) -> dict[str, Difference]:
    """Set -> difference to the largest size's score, where both were scored on the same utterances."""
    found = {}
    for split, other in counting.items():
        score = size.scores.get(split)
        if score is not None and score.utterances == other.utterances:
            found[split] = paired_difference(score.errors(), other.errors(), score.lengths())
    return found


def _choice(largest: SizeResult, smallest: Optional[SizeResult], words: int) -> str:
    few = f" They have {words:,} words: small losses do not show." if words < MANY_WORDS else ""
    if smallest is None:
        return f"Which size: {largest.name} if it fits your device; these sets show every smaller one to be worse.{few}"
    saved = 100 * (1 - (smallest.params or 0) / (largest.params or 1))
    return (
        f"Which size: {smallest.name}, with {saved:.0f}% fewer parameters, is the smallest that these sets do not show to be"
        f" worse than {largest.name}.{few}"
    )


def _price(size: SizeResult, largest: SizeResult, losses: dict[str, Difference]) -> str:
    """``+4.9 points of WER for 64% fewer parameters``, the loss being that on the set where it is largest."""
    saved = 100 * (1 - (size.params or 0) / (largest.params or 1))
    return f"{max(found.points for found in losses.values()):+.1f} points of WER for {saved:.0f}% fewer parameters"
