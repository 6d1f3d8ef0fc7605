"""The report of a repair of int8: int8.json, int8.md and int8.png beside the files, and the entry in their card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

from espnet_todm.deploy.int8.layers import Activation, Layer
from espnet_todm.deploy.onnx.recipe import Recipe
from espnet_todm.util.files import write_json, write_text
from espnet_todm.util.markdown import markdown_table
from espnet_todm.util.palette import RULE, SERIES, save_png

FORMAT = "espnet_todm.int8/1"
JSON, PAGE, PICTURE = "int8.json", "int8.md", "int8.png"
SHOWN = 20  # layers in the picture
OUTLIERS_SHOWN = 3  # channels of a layer in the table


@dataclass(frozen=True)
class Trial:
    """A recipe as measured. wer: in percent. error: of the posteriors, in nats per frame. bytes: of all int8 files. time:
    relative to float32's."""

    recipe: Recipe
    wer: float
    error: float
    bytes: int
    time: float


@dataclass(frozen=True)
class Damage:
    """What quantising one layer alone does: ``error`` of the posteriors in nats per frame with the first recipe, and
    ``repaired`` with the recipe to which layers in float32 were added. activation: the layer's input."""

    layer: Layer
    activation: Activation
    error: float
    repaired: Optional[float] = None

    def to_json(self) -> dict[str, Any]:
        """The entry of int8.json. Outliers: channel -> times the median channel's largest value."""
        return {
            "layer": self.layer.name,
            "parameters": self.layer.parameters,
            "error": self.error,
            "repaired_error": self.repaired,
            "low": self.activation.low,
            "high": self.activation.high,
            "outliers": {str(channel): ratio for channel, ratio in self.activation.outliers().items()},
        }

    def cells(self) -> list[str]:
        """The row of int8.md."""
        ranges = f"{self.activation.low:.3g} .. {self.activation.high:.3g}"
        outliers = [f"{channel} ({ratio:.0f}x)" for channel, ratio in self.activation.outliers().items()]
        more = f", {len(outliers) - OUTLIERS_SHOWN} more" if len(outliers) > OUTLIERS_SHOWN else ""
        repaired = "" if self.repaired is None else f"{self.repaired:.2g}"
        name, size = self.layer.name, f"{self.layer.parameters:,}"
        return [name, f"{self.error:.2g}", repaired, size, ranges, ", ".join(outliers[:OUTLIERS_SHOWN]) + more]


@dataclass(frozen=True)
class Int8Report:
    """All trials of one model, the last of which was taken if any was, and the damage by layers, the largest first.

    points: allowed increase of the word error rate over ``fp32_wer``, both in percent.
    """

    utterances: int
    words: int
    points: float
    fp32_wer: float
    trials: Sequence[Trial]
    damages: Sequence[Damage]
    cpu: str

    def card(self) -> dict[str, Any]:
        """What was done, for the card of the export."""
        plain, chosen = self.trials[0], self.trials[-1]
        return {
            "method": str(chosen.recipe),
            "recipe": asdict(chosen.recipe),
            "bytes": {"plain": plain.bytes, "chosen": chosen.bytes},
            "wer": {"fp32": self.fp32_wer, "plain": plain.wer, "chosen": chosen.wer},
            "posterior_error": {"plain": plain.error, "chosen": chosen.error},
            "max_wer_points": self.points,
            "utterances": self.utterances,
            "words": self.words,
            "tried": len(self.trials),
            "cpu": self.cpu,
        }

    def refusal(self, largest: float) -> str:
        """Why there are no int8 files, on one line. ``largest``: allowed size relative to the first trial."""
        fit = [one for one in self.trials if one.bytes <= largest * self.trials[0].bytes]
        best = min(fit, key=lambda one: (one.error, one.wer))
        return (
            f"{self.points:g} is not reached on {self.words} words: the best of {len(self.trials)} int8 recipes,"
            f" {best.recipe}, has a WER of {best.wer:.2f}%, fp32 {self.fp32_wer:.2f}%; allowed: a larger limit,"
            " --precision without int8, or first training with the rounding errors (espnet_todm.bin.fine_tune --int8)"
        )

    def write(self, folder: Path) -> None:
        """Write the three files into the folder of the export."""
        write_json(folder / JSON, self.to_json())
        write_text(folder / PAGE, self.markdown())
        save_png(self.picture(), folder / PICTURE)

    def to_json(self) -> dict[str, Any]:
        """The content of int8.json."""
        trials = [{"method": str(one.recipe), **asdict(one)} for one in self.trials]
        return {"format": FORMAT, **self.card(), "trials": trials, "layers": [one.to_json() for one in self.damages]}

    def markdown(self) -> str:
        """The content of int8.md: verdict, trials, layers."""
        plain = self.trials[0]
        trials = [
            [str(one.recipe), f"{one.wer:.2f}", f"{one.error:.2g}", f"{one.bytes / plain.bytes:.3f}", f"{one.time:.2f}"]
            for one in self.trials
        ]
        kept = "".join(f"* `{name}`\n" for name in self.trials[-1].recipe.kept)
        return (
            f"## int8\n\nTaken: **{self.trials[-1].recipe}**, the last row. {self.utterances} utterances, {self.words}"
            f" words; {self.cpu}. fp32 has a WER of {self.fp32_wer:.2f}%; allowed: {self.points:g} points more. Errors are"
            " mean Kullback-Leibler divergences of a frame's posteriors from fp32's, in nats.\n\n"
            + markdown_table(["recipe", "WER (%)", "error", "bytes, plain = 1", "time, fp32 = 1"], trials)
            + (f"\nIn fp32:\n\n{kept}" if kept else "")
            + "\nErrors if one layer alone is int8 as in the first row, with dynamic ranges; repaired: as in the row to"
            " which layers in fp32 were added.\n\n"
            + markdown_table(
                ["layer", "error", "repaired", "weights", "activations", "outlier channels"],
                [one.cells() for one in self.damages],
            )
        )

    def picture(self) -> Any:
        """A bar for the damage by each of the worst layers."""
        from matplotlib.figure import Figure

        worst = self.damages[:SHOWN][::-1]
        figure = Figure(figsize=(9, 1 + 0.25 * len(worst)), layout="constrained")
        axes = figure.add_subplot()
        axes.barh([one.layer.name for one in worst], [one.error for one in worst], color=SERIES[0][0])
        axes.set_xlabel("error of the posteriors (nats per frame) if only this layer is int8")
        axes.grid(axis="x", color=RULE)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=7)
        return figure
