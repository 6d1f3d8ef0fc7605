"""Seconds and memory of the data stages by size of the corpus.

    python -m benchmarks.data_stages --utterances 1000 10000 --output benchmarks/results/data_stages.md

The corpus is made in LibriSpeech's layout: links to one file of noise, 50 to a chapter, with words drawn from a
thousand made ones. Each stage is a process of its own. Stage 3 and the Shar folder read audio or features, so
they are measured up to --features utterances; above that, stage 4 judges made measures, which name the same features.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import kaldiio
import numpy as np
import soundfile

from espnet_todm.bin.data_stages import (
    compute_features,
    filter_data,
    make_shar,
    make_tokens,
    perturb_speed,
    prepare_data,
)
from espnet_todm.data.audio import Measure
from espnet_todm.data.features import MEASURES
from espnet_todm.data.tables import read_cuts
from espnet_todm.util.files import write_text
from espnet_todm.util.memory import peak_memory, reset_peak, resident_memory
from espnet_todm.util.processor import cpu_model
from espnet_todm.util.stage_marker import fingerprint, mark_complete

PER_CHAPTER, RATE = 50, 16000
WORDS = 12  # of an utterance
SPLIT = "made"
FACTORS = (0.9, 1.1)
ROWS = 1 + len(FACTORS)  # of stages 2, 3 and 4 for each utterance


def make_corpus(folder: Path, count: int, seconds: float) -> None:
    """``count`` utterances below ``folder``/corpus/made."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(2, 9))) for _ in range(1000)]
    audio = folder / "audio.flac"
    soundfile.write(audio, 0.1 * rng.standard_normal(int(seconds * RATE)), RATE)
    for start in range(0, count, PER_CHAPTER):
        speaker, chapter = start // (10 * PER_CHAPTER), start // PER_CHAPTER
        here = folder / "corpus" / SPLIT / f"{speaker:06d}" / f"{chapter:07d}"
        here.mkdir(parents=True)
        names = [f"{speaker:06d}-{chapter:07d}-{n:04d}" for n in range(min(PER_CHAPTER, count - start))]
        for name in names:
            os.symlink(audio, here / f"{name}.flac")
        rows = (f"{name} {' '.join(words[n] for n in rng.integers(0, 1000, WORDS))}\n" for name in names)
        (here / f"{speaker:06d}-{chapter:07d}.trans.txt").write_text("".join(rows))


def make_measures(_: int) -> None:
    """What stage 3 leaves, with the features of all utterances in one place."""
    folder = Path("dump/org/made_sp")
    folder.mkdir(parents=True)
    kaldiio.save_ark(str(folder / "feats.ark"), {"a": np.zeros((28, 80), np.float32)})
    with (folder / MEASURES).open("w") as lines:
        for cut in read_cuts("data/made_sp"):
            one = Measure(cut.id, cut.duration, RATE, 1, 0.4, 0.0, None, f"{folder}/feats.ark:2", 28)
            lines.write(json.dumps(one.as_json()) + "\n")
    mark_complete(folder, {"stage": "features", "feats_type": "fbank", "input": fingerprint("data/made_sp")})


def stage_1(jobs: int) -> None:
    prepare_data.main(["--corpus", "corpus", "--splits", SPLIT, "--jobs", str(jobs)])


def stage_2(jobs: int) -> None:
    folders = ["--data", f"data/{SPLIT}", "--output", f"data/{SPLIT}_sp"]
    perturb_speed.main([*folders, "--factors", *map(str, FACTORS), "--jobs", str(jobs)])


def stage_3(jobs: int) -> None:
    compute_features.main(["--splits", f"{SPLIT}_sp", "--output", "dump", "--jobs", str(jobs)])


def stage_4(jobs: int) -> None:
    filter_data.main(["--features", "dump", "--train", f"{SPLIT}_sp"])


def shar(jobs: int) -> None:
    make_shar.main(["--features", "dump", "--splits", f"{SPLIT}_sp", "--jobs", str(jobs)])


def stage_5(token_type: str) -> Callable[[int], None]:
    def run(jobs: int) -> None:
        size = [] if token_type == "char" else ["--size", "500"]
        make_tokens.main(
            ["--text", f"data/{SPLIT}/text", "--token_type", token_type, *size, "--output", f"data/{token_type}"]
        )

    return run


STAGES: dict[str, tuple[str, int, Callable[[int], None]]] = {
    "1": ("1 data", 1, stage_1),
    "2": ("2 speed copies", ROWS, stage_2),
    "3": ("3 features", ROWS, stage_3),
    "made": ("(measures, made)", ROWS, make_measures),
    "4": ("4 filter", ROWS, stage_4),
    "shar": ("4 Shar folder", ROWS, shar),
    "5 char": ("5 characters", 1, stage_5("char")),
    "5 unigram": ("5 unigram", 1, stage_5("unigram")),
}
"""Name of a stage -> what the table calls it, the rows that it writes for an utterance, and how it is run."""


def child(stage: str, jobs: int, answer: Path) -> None:
    """Run a stage in the current folder, and write what it took."""
    before, start, busy = resident_memory(), time.perf_counter(), _processor_seconds()
    reset_peak()
    STAGES[stage][2](jobs)
    taken = {"seconds": time.perf_counter() - start, "busy": _processor_seconds() - busy}
    answer.write_text(json.dumps({"before": before, "peak": peak_memory(), **taken}))


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for count in options.utterances:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            folder = Path(name)
            make_corpus(folder, count, options.seconds)
            for stage in STAGES:
                if stage in (("made",) if count <= options.features else ("3", "shar")):
                    continue
                row = {"stage": stage, "utterances": count, **_measured(stage, folder, options.jobs)}
                print(row, file=sys.stderr, flush=True)
                yield row


def _measured(stage: str, folder: Path, jobs: int) -> dict[str, Any]:
    """Run a stage in a fork of this process, which has paid for the imports."""
    answer = folder / "answer.json"
    forked = os.fork()
    if not forked:
        status = 1
        try:
            os.chdir(folder)
            child(stage, jobs, answer)
            status = 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    if os.waitpid(forked, 0)[1]:
        sys.exit(f"stage {stage} has failed")
    return json.loads(answer.read_text())


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    lines = [
        "| stage | utterances | rows | s | processor s | processor ms per row | peak (MiB) | before (MiB) | bytes per row |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        title, factor, _ = STAGES[row["stage"]]
        if row["stage"] == "made":
            continue
        count, grown = factor * row["utterances"], row["peak"] - row["before"]
        lines.append(
            f"| {title} | {row['utterances']:,} | {count:,} | {row['seconds']:.1f} | {row['busy']:.1f} |"
            f" {1000 * row['busy'] / count:.3f} | {row['peak']:.0f} | {row['before']:.0f} | {grown * 2**20 / count:.0f} |"
        )
    return (
        "# Data stages by size of the corpus\n\n" + "\n".join(lines) + "\n\n"
        f"Data: made utterances, links to one file of {options.seconds:g} s of noise, {PER_CHAPTER} to a chapter,"
        f" {WORDS} words each; speeds {', '.join(f'{factor:g}' for factor in FACTORS)}; {options.jobs} job(s)."
        " A row is an utterance or a copy of one. `before`: after the imports. `bytes per row`: the growth over that."
        f" `processor s` are of all processes.\n\n{cpu_model()};"
        f" `python -m benchmarks.data_stages {' '.join(sys.argv[1:])}`\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--seconds", type=float, default=0.3, help="length of each (default 0.3)")
    parser.add_argument("--features", type=int, default=1000, help="measure stage 3 up to so many (default 1000)")
    parser.add_argument("--jobs", type=int, default=1, help="of the stages that have jobs (default 1)")
    parser.add_argument("--folder", help="where the corpora are made (default: the system's for temporary files)")
    parser.add_argument("--output", help="write the report to this markdown file as well")
    options = parser.parse_args()
    rows = list(measure(options))
    text = report(rows, options)
    print(text, end="")
    if options.output:
        write_text(options.output, text)


if __name__ == "__main__":
    main()
