"""The comparisons of the parity gate: of arrays, of transcripts, of word error rates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np

from espnet_todm.deploy.parity.report import Limits, Rate, Step
from espnet_todm.deploy.parity.speech import Speech
from espnet_todm.deploy.runtime.base import StepRuntime
from espnet_todm.deploy.runtime.recognizer import as_sherpa_writes
from espnet_todm.scoring.scores import score_tables

Arrays = Sequence[np.ndarray]
FP32 = "fp32"


@dataclass(frozen=True)
class Heard:
    """The results of a runtime for all utterances.

    encoded: outputs of :meth:`StepRuntime.encode`; with ``shows_encoder``, encoder outputs. posteriors: probabilities
    (T', V), for transducers along ``paths``. texts: transcripts.
    """

    name: str
    shows_encoder: bool
    encoded: Arrays
    posteriors: Arrays
    paths: Sequence[Sequence[int]]
    texts: Sequence[str]


def hear(name: str, runtime: StepRuntime, features: Arrays, paths: Optional[Sequence[Sequence[int]]] = None) -> Heard:
    """Run every step on features (T, F) of each utterance. The encoder runs once per utterance.

    ``paths``: another runtime's paths for the posteriors, to make them comparable. Texts use the runtime's own paths.
    """
    encoded = [runtime.encode(one) for one in features]
    own = [runtime.path(one) for one in encoded]
    along = own if paths is None else paths
    posteriors = [np.exp(runtime.posteriors(one, path)) for one, path in zip(encoded, along)]
    texts = [runtime.spell(runtime.labels(path)) for path in own]
    return Heard(name, runtime.shows_encoder, encoded, posteriors, along, texts)


class Gate:
    """Collects steps, in the order of comparison, and word error rates."""

    def __init__(self, speech: Sequence[Speech], limits: Limits) -> None:
        self.names = [one.name for one in speech]
        self.references = {one.name: one.text for one in speech}
        self.limits = limits
        self.steps: list[Step] = []
        self.rates: list[Rate] = []

    def everything(self, heard: Heard, reference: Heard, exact: bool) -> None:
        """Compare encoder outputs, posteriors and transcripts. Without ``exact``, differences are only reported."""
        limits = (self.limits.encoder, self.limits.posteriors) if exact else (None, None)
        pair = heard.name, reference.name
        if heard.shows_encoder and reference.shows_encoder:
            self.arrays("encoder", *pair, heard.encoded, reference.encoded, limits[0])
        self.arrays("posteriors", *pair, heard.posteriors, reference.posteriors, limits[1])
        self.texts(*pair, heard.texts, reference.texts, exact)

    def exported(self, precision: str, heard: Heard, reference: Heard, texts: Sequence[str]) -> None:
        """Compare one precision of an exported model: onnxruntime with PyTorch, and sherpa-onnx's texts with onnxruntime's.

        fp32 must stay within the limits. Differences of other precisions are only reported.
        """
        exact, sherpa = precision == FP32, f"sherpa-onnx {precision}"
        self.everything(heard, reference, exact)
        self.rate(heard.name, heard.texts, reference.texts, exact)
        self.texts(sherpa, heard.name, sherpa_written(texts), sherpa_written(heard.texts), exact)
        self.rate(sherpa, texts, reference.texts, exact)

    def arrays(
        self,
        step: str,
        of: str,
        against: str,
        ours: Arrays,
        theirs: Arrays,
        limit: Optional[float],
    ) -> None:
        """Add the largest absolute difference over utterances; infinite if shapes differ or a value is not finite."""
        found = [_difference(one, other) for one, other in zip(ours, theirs)]
        worst = int(np.argmax([difference for difference, _ in found]))
        difference, detail = found[worst]
        where = self.names[worst] if difference else ""
        self.steps.append(Step(step, of, against, difference, limit, where, detail))

    def padded(self, heard: Heard, utterance: int, together: np.ndarray) -> None:
        """Compare a runtime's output for an utterance in a padded batch with that for the utterance alone."""
        step, limit, alone = "encoder", self.limits.encoder, heard.encoded[utterance]
        if not heard.shows_encoder:
            step, limit, together, alone = "posteriors", self.limits.posteriors, np.exp(together), np.exp(alone)
        difference, detail = _difference(together, alone)
        names = f"{heard.name} in a batch", heard.name
        self.steps.append(Step(step, *names, difference, limit, self.names[utterance], detail))

    def texts(
        self,
        of: str,
        against: str,
        ours: Sequence[str],
        theirs: Sequence[str],
        exact: bool,
        names: Optional[Sequence[str]] = None,
    ) -> None:
        """Add the number of transcripts that differ, and the first one. ``names``: of the utterances, default the gate's."""
        apart = [i for i, (one, other) in enumerate(zip(ours, theirs)) if one != other]
        first = apart[0] if apart else None
        name = (names or self.names)[first] if first is not None else ""
        detail = f"{ours[first]!r} and {theirs[first]!r}" if first is not None else ""
        limit = 0.0 if exact else None
        self.steps.append(Step("transcripts", of, against, float(len(apart)), limit, name, detail))

    def rate(
        self, of: str, texts: Sequence[str], reference: Optional[Sequence[str]] = None, exact: bool = True
    ) -> None:
        """Add a word error rate. With ``reference`` texts and without ``exact``, also add its difference to theirs."""
        changed = sum(one != other for one, other in zip(texts, reference or texts))
        rate = self._wer(texts)
        self.rates.append(Rate(of, rate, changed))
        if reference is not None and not exact:
            points = rate - self._wer(reference)
            self.steps.append(Step("WER", of, self.rates[0].of, points, self.limits.wer_points))

    def _wer(self, texts: Sequence[str]) -> float:
        return score_tables(self.references, dict(zip(self.names, texts)), "parity").total().error_rate


def sherpa_written(texts: Iterable[str]) -> list[str]:
    """Texts without the spaces that sherpa-onnx removes on purpose: they are no difference. Its error rate shows them."""
    return [*map(as_sherpa_writes, texts)]


def _difference(one: np.ndarray, other: np.ndarray) -> tuple[float, str]:
    """Largest absolute difference, and a remark about it."""
    if one.shape != other.shape:
        return np.inf, f"shape {list(one.shape)} against {list(other.shape)}"
    difference = float(np.abs(one - other).max(initial=0.0))
    return (difference, "") if np.isfinite(difference) else (np.inf, "values that are no numbers")
