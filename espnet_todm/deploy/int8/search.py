"""The search for an int8 export within a limit of word errors: remedies one after the other, until one is good enough.

The order is that of cost: other integers for the weights, scales per channel, static ranges, all of these with smoothing,
layers that stay in float32, and last a penalty for the blank. The last two are added to the best one before them, by the
error of the posteriors, which is less noisy than the word error rate.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

from espnet_todm.deploy.int8.files import Int8Files
from espnet_todm.deploy.int8.layers import Layer, layers_of
from espnet_todm.deploy.int8.meter import Meter
from espnet_todm.deploy.int8.report import Damage, Int8Report, Trial
from espnet_todm.deploy.onnx.recipe import INT8, SEVEN_BITS, UINT8, Recipe
from espnet_todm.deploy.onnx.rewrite import has_blank_bias
from espnet_todm.deploy.parity.speech import Speech
from espnet_todm.deploy.runtime.onnx import OnnxRuntime
from espnet_todm.errors import UserError
from espnet_todm.util.processor import cpu_model

LARGEST = 1.15  # allowed size of the files, relative to plain int8's
FLOAT_BYTES = 3  # additional bytes of a weight in float32
MENDED = 0.75  # error of the posteriors with a remedy, relative to the first recipe's, or less
NEARLY = 1.1  # relative to the smallest error: a simpler recipe with such an error is as good
BLANK_PENALTIES = (0.25, 0.5, 1.0, -0.25, -0.5)


@dataclass(frozen=True)
class Repair:
    """Makes int8 files whose word error rate on ``speech`` is at most ``points`` above float32's.

    Calling it with the files and the recipe to begin with returns entries for the card. If the first recipe is not good
    enough, int8.json, int8.md and int8.png are written, too.

    Raises:
        UserError: no recipe is good enough; names the best one.
    """

    speech: Sequence[Speech]
    points: float

    def __call__(self, files: Int8Files, first: Recipe) -> Mapping[str, Any]:
        search = _Search(files, Meter(files, self.speech), self.points)
        chosen = search.run(first)
        report = Int8Report(
            utterances=len(self.speech),
            words=search.meter.words,
            points=self.points,
            fp32_wer=search.meter.wer,
            trials=search.trials,
            damages=search.damages,
            cpu=cpu_model(),
        )
        if chosen is None:
            raise UserError(f"max_wer_points: {report.refusal(LARGEST)}")
        if len(search.trials) > 1:
            report.write(files.folder)
        return {"int8": report.card()}


class _Search:
    """Attributes: ``trials`` in their order, and ``damages`` by layers, the largest first, once they were measured."""

    def __init__(self, files: Int8Files, meter: Meter, points: float) -> None:
        self.files, self.meter, self.points = files, meter, points
        self.trials: list[Trial] = []
        self.damages: list[Damage] = []

    def run(self, first: Recipe) -> Optional[Trial]:
        """Try recipes until one is good enough, whose files then are in the folder; None if there is none."""
        for recipe in self._recipes(first):
            trial, runtime = self._try(recipe)
            if self._fits(trial) and self._mends(trial) and self._within(trial, runtime):
                return trial
        return None

    def _within(self, trial: Trial, runtime: OnnxRuntime) -> bool:
        """Whether the word error rate is within the limit, with the features of training and with those of the device."""
        most = self.meter.wer + self.points
        return trial.wer <= most and self.meter.device_rate(runtime) <= most

    def _mends(self, trial: Trial) -> bool:
        """Whether a remedy makes the error of the posteriors smaller. If not, its better word error rate is chance."""
        return trial is self.trials[0] or trial.error <= MENDED * self.trials[0].error

    def _recipes(self, first: Recipe) -> Iterator[Recipe]:
        import onnx

        yield first
        layers = [one for part in self.files.parts for one in layers_of(part, self.files.exact(part))]
        self._examine(layers, first)
        variants = [first, *(one for one in _variants(bool(self.files.calibration)) if one != first)]
        yield from variants[1:]
        yield from (replace(one, smooth=True) for one in variants)
        yield from self._keeping(self._best())
        best = self._best().recipe
        if has_blank_bias(onnx.load(str(self.files.exact(self.files.parts[-1])))):
            for penalty in BLANK_PENALTIES:
                yield replace(best, blank_penalty=penalty)

    def _keeping(self, best: Trial) -> Iterator[Recipe]:
        """Keep layers in float32, in the order of their damage with the best recipe, while the files are small enough."""
        recipe, size = best.recipe, best.bytes
        if recipe != self.trials[0].recipe:
            self.damages = [replace(one, repaired=self._damage(one.layer, recipe)) for one in self.damages]
        for one in sorted(self.damages, key=lambda one: -(one.error if one.repaired is None else one.repaired)):
            size += FLOAT_BYTES * one.layer.parameters
            if size > LARGEST * self.trials[0].bytes:
                size -= FLOAT_BYTES * one.layer.parameters
                continue
            recipe = replace(recipe, kept=(*recipe.kept, one.layer.name))
            yield recipe

    def _examine(self, layers: Sequence[Layer], recipe: Recipe) -> None:
        """Measure activations, and the damage by each layer alone."""
        logging.info("int8: %s is not good enough; measuring %d layers one by one", recipe, len(layers))
        watched = self.meter.watch(layers)
        self.files.peaks = {
            part: {name: one.peaks for name, one in session.seen.items()} for part, session in watched.items()
        }
        found = [Damage(one, watched[one.part].seen[one.input], self._damage(one, recipe)) for one in layers]
        self.damages = sorted(found, key=lambda one: -one.error)

    def _damage(self, layer: Layer, recipe: Recipe) -> float:
        """Error of the posteriors if only this layer is quantized, with dynamic ranges."""
        self.files.write_part(layer.part, replace(recipe, static=False, kept=(), blank_penalty=0.0), layer.name)
        return self.meter.error(self.meter.runtime([layer.part]))

    def _try(self, recipe: Recipe) -> tuple[Trial, OnnxRuntime]:
        """Write and measure the files of a recipe. Returns the model that they hold, too."""
        self.files.write(recipe)
        runtime = self.meter.runtime(self.files.parts)
        wer, seconds = self.meter.rate(runtime)
        trial = Trial(recipe, wer, self.meter.error(runtime), self.files.bytes(), seconds / self.meter.seconds)
        self.trials.append(trial)
        logging.info("int8: %s: WER %.2f%%, fp32 %.2f%%", recipe, wer, self.meter.wer)
        return trial, runtime

    def _fits(self, trial: Trial) -> bool:
        return trial.bytes <= LARGEST * self.trials[0].bytes

    def _best(self) -> Trial:
        """The first trial with nearly the smallest error of the posteriors, of those that are small enough."""
        fit = [*filter(self._fits, self.trials)]
        smallest = min(one.error for one in fit)
        return next(one for one in fit if one.error <= NEARLY * smallest)


def _variants(calibrated: bool) -> Iterator[Recipe]:
    """Recipes that are cheap to make and to run."""
    for per_channel in (False, True):
        for weights in (INT8, SEVEN_BITS, UINT8):
            yield Recipe(weights=weights, per_channel=per_channel)
    if calibrated:
        for weights in (INT8, SEVEN_BITS, UINT8):
            yield Recipe(static=True, weights=weights, per_channel=True)
