"""Memory of a training process by size of its corpus: ESPnet's tables, a manifest of cuts, a Shar folder.

    python -m benchmarks.lhotse_memory --utterances 1000 20000 1000000 --output benchmarks/results/lhotse_memory.md

The utterances are made: a thousand matrices of random features, which the tables, manifests and shards of all sizes name
again and again (shards are links). Each training is a process of its own, with a supernet of a few thousand parameters. A
peak above --limit on the lhotse path ends with status 1.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kaldiio
import numpy as np
import yaml
from lhotse import Features, SupervisionSegment
from lhotse.cut import MonoCut
from lhotse.shar import SharWriter

from espnet_todm.util.files import write_text
from espnet_todm.util.memory import peak_memory, resident_memory
from espnet_todm.util.processor import cpu_model
from tests.tiny_training import SUPERNET

DISTINCT, WIDTH = 1000, 20  # matrices of features, and values of a frame
SECONDS = (2.0, 14.0)  # shortest and longest utterance
KINDS = ("tables", "manifest", "shar")
TOKENS = ["<blank>", "<unk>", "<space>", *"abcdefgh", "<sos/eos>"]
CONFIG: dict[str, Any] = {
    **SUPERNET,
    "optim": "adam",
    "optim_conf": {"lr": 0.001},
    "max_epoch": 1,
    "use_matplotlib": False,
    "use_tensorboard": False,
}


class Made:
    """The features and the texts that all corpora name."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        frames = (100 * rng.uniform(*SECONDS, DISTINCT)).astype(int)
        self.folder, self.frames = folder, [int(count) for count in frames]
        self.texts = ["".join(rng.choice(list("abcdefgh"), 20)) for _ in frames]
        features = {f"m{n:04d}": rng.standard_normal((count, WIDTH), np.float32) for n, count in enumerate(self.frames)}
        kaldiio.save_ark(str(folder / "feats.ark"), features, scp=str(folder / "feats.scp"))
        rows = (folder / "feats.scp").read_text().splitlines()
        self.places = [row.split()[1] for row in rows]
        for name, matrix in features.items():
            np.save(folder / f"{name}.npy", matrix)
        (folder / "made").mkdir()
        with SharWriter(folder / "made", {"features": "numpy"}, shard_size=DISTINCT, warn_unused_fields=False) as shard:
            for n in range(DISTINCT):
                shard.write(self.cut(n, f"m{n:04d}"))

    def cut(self, n: int, name: str) -> MonoCut:
        seconds = self.frames[n] / 100
        said = SupervisionSegment(name, name, 0.0, seconds, text=self.texts[n])
        where = ("numpy_files", str(self.folder), f"m{n:04d}.npy")
        stored = Features(
            "fbank", self.frames[n], WIDTH, 0.01, 16000, 0.0, seconds, *where, recording_id=name, channels=0
        )
        return MonoCut(name, 0.0, seconds, 0, supervisions=[said], features=stored)

    def manifest(self, path: Path, count: int) -> Path:
        lines = [json.dumps(self.cut(n, "NAME").to_dict()) for n in range(DISTINCT)]
        with gzip.open(path, "wt", compresslevel=1) as file:
            file.writelines(lines[n % DISTINCT].replace("NAME", f"u{n:08d}") + "\n" for n in range(count))
        return path

    def shar(self, folder: Path, count: int) -> Path:
        folder.mkdir()
        for number in range(max(1, count // DISTINCT)):
            for name in ("cuts.{}.jsonl.gz", "features.{}.tar"):
                os.symlink(self.folder / "made" / name.format("000000"), folder / name.format(f"{number:06d}"))
        return folder

    def tables(self, folder: Path, count: int) -> Path:
        folder.mkdir()
        columns = {
            "feats.scp": self.places,
            "text": self.texts,
            "speech_shape": [f"{count},{WIDTH}" for count in self.frames],
            "text_shape": [f"{len(text)},{len(TOKENS)}" for text in self.texts],
        }
        for name, values in columns.items():
            with (folder / name).open("w") as file:
                file.writelines(f"u{n:08d} {values[n % DISTINCT]}\n" for n in range(count))
        return folder


def arguments(made: Made, kind: str, count: int, options: argparse.Namespace) -> list[str]:
    """The training command's arguments for a corpus of ``count`` utterances, which is made where it is not there."""
    valid, corpus = made.folder / "valid.jsonl.gz", made.folder / f"{kind}{count}"
    valid = valid if valid.exists() else made.manifest(valid, 20)
    config = {**CONFIG, "iterator": "lhotse", "num_iters_per_epoch": options.steps, "num_workers": options.workers}
    reading: dict[str, Any] = {"train": "none", "valid": str(valid), "max_duration": options.max_duration}
    more: list[str] = []
    if kind == "tables":
        folder = made.tables(corpus, count)
        del config["iterator"]
        config.update(batch_type="length", batch_bins=int(100 * options.max_duration))
        for split in ("train", "valid"):
            source = folder if split == "train" else made.tables(made.folder / f"valid{count}", 20)
            more += [f"--{split}_data_path_and_name_and_type", f"{source}/feats.scp,speech,kaldi_ark"]
            more += [f"--{split}_data_path_and_name_and_type", f"{source}/text,text,text"]
            more += [f"--{split}_shape_file", f"{source}/speech_shape", f"--{split}_shape_file", f"{source}/text_shape"]
    else:
        make = made.shar if kind == "shar" else made.manifest
        reading["train"] = str(make(corpus if kind == "shar" else corpus.with_suffix(".jsonl.gz"), count))
        config["iterator_conf"] = reading
    output = made.folder / f"exp_{kind}{count}"
    (made.folder / "tokens.txt").write_text("\n".join(TOKENS) + "\n")
    (made.folder / f"{kind}{count}.yaml").write_text(yaml.safe_dump(config))
    files = ["--config", str(made.folder / f"{kind}{count}.yaml"), "--output_dir", str(output)]
    tokens = ["--token_list", str(made.folder / "tokens.txt"), "--token_type", "char", "--use_preprocessor", "true"]
    return [*files, *tokens, "--ngpu", "0", "--input_size", str(WIDTH), *more]


def child(training: list[str]) -> None:
    """Train, and print what it took."""
    from espnet_todm.espnet.options import train
    from espnet_todm.espnet.registry import register

    register()
    before, start = resident_memory(), time.perf_counter()
    train(training)
    seconds = time.perf_counter() - start
    print(json.dumps({"before": before, "peak": peak_memory(), "seconds": seconds}))


def measure(made: Made, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for count in options.utterances:
        for kind in options.kinds:
            command = [
                sys.executable,
                "-m",
                "benchmarks.lhotse_memory",
                "--child",
                *arguments(made, kind, count, options),
            ]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if ended.returncode:
                sys.exit(ended.stderr)
            row = {"kind": kind, "utterances": count, **json.loads(ended.stdout.splitlines()[-1])}
            print(row, file=sys.stderr, flush=True)
            yield row


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    lines = ["| utterances | source | peak (MiB) | of which before the training | s for all |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['utterances']:,} | {row['kind']} | {row['peak']:.0f} | {row['before']:.0f} | {row['seconds']:.0f} |"
        for row in rows
    ]
    return (
        "# Memory of a training process by size of the corpus\n\n" + "\n".join(lines) + "\n\n"
        f"{options.steps} steps of {options.max_duration:g} s of made features, {options.workers} workers; tables are"
        f" ESPnet's own iterator; `s for all` includes making the batches and one validation.\n\n{cpu_model()}; "
        f"`python -m benchmarks.lhotse_memory {' '.join(sys.argv[1:])}`\n"
    )


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, nargs="+", default=[1000, 20000])
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--max_duration", type=float, default=120.0, help="seconds of a batch (default 120)")
    parser.add_argument("--workers", type=int, default=0, help="of the data loader (default 0)")
    parser.add_argument("--limit", type=float, default=1536.0, help="MiB, of the lhotse path (default 1536)")
    parser.add_argument("--output", help="write the report to this markdown file as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measure(Made(Path(folder)), options))
    text = report(rows, options)
    print(text, end="")
    if options.output:
        write_text(options.output, text)
    if max((row["peak"] for row in rows if row["kind"] != "tables"), default=0) > options.limit:
        sys.exit(f"a training from lhotse's cuts takes more than {options.limit:g} MiB")


if __name__ == "__main__":
    main()
