"""Train one model: the supernet, or one size of it alone. A small loop in place of ESPnet's trainer, whose task imports
packages that a GPU machine may lack. It is resumable, and everything in it is a function of (seed, update).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch

from benchmarks.gpu.corpus import TOKENS, Split, in_batches, load, training_batches
from benchmarks.gpu.models import build, read
from benchmarks.gpu.rows import logger
from espnet_todm.models.batch import Batch
from espnet_todm.models.subnet_trainer import TrainingSetup
from espnet_todm.models.todm import TodmModel
from espnet_todm.optim.scaled_adam import ScaledAdam
from espnet_todm.trainers.single import SingleTrainer
from espnet_todm.util.files import atomic_path, write_json

SUPERNET = "supernet"
EVALUATIONS = 8  # on the development set, evenly over the updates
_UNIT = 1000  # the configuration's numbers of updates are in thousandths of the run


def scaled(config: Mapping[str, Any], updates: int) -> dict[str, Any]:
    """The configuration with its numbers of updates for a run of ``updates``."""
    factor = updates / _UNIT
    trainer = {
        key: max(1, round(value * factor)) if key.endswith("_steps") else value
        for key, value in config["subnet_trainer_conf"].items()
    }
    schedule = dict(config["scheduler_conf"])
    schedule["warmup_steps_list"] = [round(step * factor) for step in schedule["warmup_steps_list"]]
    return {**config, "subnet_trainer_conf": trainer, "scheduler_conf": schedule}


class Training:
    """One model, its optimizer and its place in the run. ``name``: SUPERNET, or the size that is trained alone."""

    def __init__(self, name: str, config: Mapping[str, Any], updates: int, options: argparse.Namespace) -> None:
        self.config, self.updates, self.update = scaled(config, updates), updates, 0
        self.model: TodmModel = build(self.config, TOKENS, options.device)
        if name != SUPERNET:
            self.model.subnet_trainer = SingleTrainer(self.model, size=name)
        self.optimizer = ScaledAdam(self.model.trained_parameters(), lr=0.03, clipping_scale=2.0)
        self.seed, self.batch_seconds = options.seed, options.batch_seconds
        self.checkpoint = options.state / f"{name}.pth"
        self.batches: Optional[Iterator[Batch]] = None

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one."""
        if self.checkpoint.is_file():
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.update = state["update"]

    def save(self) -> None:
        with atomic_path(self.checkpoint) as temporary:
            state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "update": self.update}
            torch.save(state, temporary)

    def run(self, split: Split, updates: int) -> None:
        """The next ``updates`` updates. Raises FloatingPointError if the loss is not finite at their end."""
        model, schedule = self.model.train(), self.config["scheduler_conf"]
        if self.batches is None:
            self.batches = training_batches(split, self.batch_seconds, self.seed, self.update)
        setup = TrainingSetup([self.optimizer], self.updates)
        loss = torch.full((), math.nan)
        for step in range(self.update, self.update + updates):
            batch = next(self.batches)
            torch.manual_seed(self.seed * 1_000_003 + step)
            model.subnet_trainer.prepare(model, step, setup)
            rate = np.interp(step, schedule["warmup_steps_list"], schedule["warmup_lr_list"])
            for group in self.optimizer.param_groups:
                group["lr"] = max(float(rate), 1e-8)
            self.optimizer.zero_grad(set_to_none=True)
            speech = (batch.speech, batch.speech_lengths, batch.text, batch.text_lengths)
            loss = model(*speech, step=step)[0].sum()
            loss.backward()
            self.optimizer.step()
            self.update = step + 1
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()} at update {self.update}")

    def evaluate(self, split: Split) -> dict[str, dict[str, Any]]:
        """Of each trained size: mean CTC loss per utterance, and word errors and words of each utterance (greedy)."""
        model = self.model.eval()
        subnets = model.subnet_trainer.evaluated(model, self.update)
        found: dict[str, dict[str, Any]] = {s.name: {"loss": 0.0, "errors": {}, "words": {}} for s in subnets}
        order = np.argsort(split.lengths).tolist()
        for chosen in in_batches(order, split.lengths, 600.0):
            batch = split.batch(chosen)
            with torch.no_grad():
                subsampled = model.run_subsampling(batch)
                for subnet in subnets:
                    output = model.run_subnet(subsampled, batch, subnet)
                    best, lengths = output.posteriors.ctc.argmax(-1).tolist(), output.posteriors.lengths.tolist()
                    row = found[subnet.name]
                    row["loss"] += float(output.loss) * len(chosen) / len(order)
                    for utterance, frames, length in zip(chosen, best, lengths):
                        reference = split.texts[utterance].split()
                        row["errors"][utterance] = edits(reference, collapsed(frames[:length]).split())
                        row["words"][utterance] = len(reference)
        return {name: {**row, **_in_order(row, len(order))} for name, row in found.items()}


def _in_order(row: Mapping[str, Any], count: int) -> dict[str, list[int]]:
    return {key: [row[key][utterance] for utterance in range(count)] for key in ("errors", "words")}


def collapsed(frames: Sequence[int]) -> str:
    """The text of the best CTC path."""
    kept = [now for before, now in zip([0, *frames], frames) if now not in (0, before)]
    return "".join(" " if token == 2 else TOKENS[token] for token in kept)


def edits(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Levenshtein distance. The recipes score as sclite does, whose costs can give slightly more errors."""
    row = list(range(len(hypothesis) + 1))
    for number, word in enumerate(reference, 1):
        diagonal, row[0] = row[0], number
        for place, other in enumerate(hypothesis, 1):
            diagonal, row[place] = row[place], min(diagonal + (word != other), row[place] + 1, row[place - 1] + 1)
    return row[-1]


def speed(training: Training, split: Split, seconds: float) -> float:
    """Updates per second of the longest phase, beside the other trainings that measure theirs. The model is then useless."""
    training.batches = training_batches(split, training.batch_seconds, training.seed)
    training.update = training.updates // 2
    training.run(split, 3)
    start, done = time.monotonic(), 0
    while time.monotonic() < start + seconds:
        training.run(split, 5)
        done += 5
    return done / (time.monotonic() - start)


def planned(options: argparse.Namespace, config: Mapping[str, Any], train: Split) -> int:
    """The number of updates in plan.json, which the starter writes once each training has told its speed."""
    plan = options.state / "plan.json"
    if not plan.is_file():
        trial = Training(options.name, config, 10**6, options)
        write_json(options.state / f"speed_{options.name}.json", speed(trial, train, options.trial_seconds))
    while not plan.is_file():
        time.sleep(0.2)
    return int(json.loads(plan.read_text(encoding="utf-8"))["updates"])


def parse(arguments: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="supernet, or the size to train alone")
    parser.add_argument("--config", default="train", help="a file of conf/, without its ending")
    parser.add_argument(
        "--state", type=Path, required=True, help="folder of the unpacked features, plan and checkpoints"
    )
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--batch_seconds", type=float, default=100.0, help="speech in a batch, with its padding")
    parser.add_argument("--trial_seconds", type=float, default=6.0, help="time to measure the speed")
    parser.add_argument("--save_seconds", type=float, default=20.0, help="time between checkpoints")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    log = logger()
    config = {**read(options.config), "seed": options.seed}
    splits = list(json.loads((options.state / "corpus/index.json").read_text(encoding="utf-8"))["splits"])
    train, dev, test = (load(options.state / "corpus", split, options.device) for split in splits)
    training = Training(options.name, config, planned(options, config, train), options)
    write_json(options.state / f"run_{options.name}.json", described(training))
    training.restore()
    log.info("%s: from update %d of %d", options.name, training.update, training.updates)
    saved, every = time.monotonic(), max(1, training.updates // EVALUATIONS)
    while training.update < training.updates:
        training.run(train, min(every - training.update % every, 50, training.updates - training.update))
        if training.update % every == 0:
            found = training.evaluate(dev)
            write_json(options.state / f"dev_{options.name}_{training.update}.json", found)
            log.info("%s: update %d: %s", options.name, training.update, short(found))
        if time.monotonic() > saved + options.save_seconds or training.update == training.updates:
            training.save()
            saved = time.monotonic()
    found = training.evaluate(test)
    write_json(options.state / f"test_{options.name}.json", found)
    log.info("%s: test: %s", options.name, short(found))


def described(training: Training) -> dict[str, Any]:
    """For each size, its parameters and the updates of the run that train it."""
    model = training.model
    counts = model.subnet_trainer.size_updates(model.encoder.sizes, training.updates)  # type: ignore[union-attr]
    table = model.component_table()
    sizes = model.encoder.sizes.items()
    return {
        name: {"parameters": table.cost(subnet).params, "updates_of_size": counts[name].sliced + counts[name].gated}
        for name, subnet in sizes
    }


def short(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Word error rates in a line."""
    return ", ".join(f"{n} {100 * sum(row['errors']) / sum(row['words']):.1f}%" for n, row in found.items())


if __name__ == "__main__":
    main()
