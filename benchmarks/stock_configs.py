"""Try a folder of stock ESPnet configurations as supernets: which work with the ten lines, and what the others are told.

    python benchmarks/stock_configs.py path/to/espnet/egs2 --label "ESPnet 202503's egs2" --output docs/stock_configs.md

Each configuration of a supernet's stock encoder gets the ten lines of the README and nothing else, and then a dry run: the
model is built, one step of each kind that its training has is made on random speech, every key that picks models is looked
for in a validation, and each size is extracted and compared with its slice. ``--width`` makes all layers that narrow, which
changes no other option and takes seconds instead of minutes; ``--width 0`` leaves them as they are. Front ends of s3prl,
which would have to be downloaded, are stood in for by random projections of the same shapes.

Configurations that share everything this run looks at are tried once.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import re
import sys
import tempfile
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
import yaml
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from tqdm import tqdm

import espnet_todm
from espnet_todm.errors import UserError
from espnet_todm.util.files import write_text
from espnet_todm.util.markdown import markdown_table

WORKS, REFUSED, WRONG = "works", "refused", "wrong"
TEN_LINES = {
    "model": "todm",
    "subnet_trainer": "kd",
    "subnet_trainer_conf": {"random_subnets": 1, "kd_weight": 0.5},
}
SIZES = {"medium": {"depth": 0.75, "ffn": 0.75}, "small": {"depth": 0.5, "ffn": 0.5}}
# Options of a configuration's parts that say how wide a layer is.
WIDTHS = ("output_size", "linear_units", "cgmlp_linear_units", "hidden_size", "joint_space_size")
TASKS_A_PROCESS = 30  # then a fresh one, so that nothing piles up


@dataclass(frozen=True)
class Outcome:
    """Of one configuration: whether it works, and the line or the end of the traceback where not."""

    path: str
    encoder: str
    result: str
    line: str = ""


class StubFrontend(AbsFrontend):
    """Stands in for s3prl's: audio (B, N) -> features (B, N // 320, 1024), and no download."""

    hop_length = 320

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.upstream = torch.nn.Linear(self.hop_length, 1024)

    def output_size(self) -> int:
        return self.upstream.out_features

    def forward(self, audio: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hop = self.hop_length
        frames = audio.size(1) // hop
        return self.upstream(audio[:, : frames * hop].reshape(len(audio), frames, hop)), lengths // hop


def find(folder: Path, pattern: str, encoders: Iterable[str]) -> dict[Path, dict[str, Any]]:
    """Training configurations with one of these encoders; files that are no YAML mappings are no configurations."""
    found = {}
    for path in sorted(folder.glob(pattern)):
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue
        if isinstance(config, dict) and config.get("encoder") in encoders:
            found[path] = config
    return found


def supernet(config: Mapping[str, Any], width: int) -> dict[str, Any]:
    """The configuration with the ten lines, and its layers ``width`` wide."""
    result = {key: narrow(value, width) if width and key.endswith("_conf") else value for key, value in config.items()}
    encoder_conf = {**(result.get("encoder_conf") or {}), "sizes": SIZES}
    if width and config["encoder"] != "transformer":
        encoder_conf.setdefault("output_size", width)
    encoder_conf.setdefault("linear_units", width or 2048)
    if width and result.get("decoder") == "transformer":
        result["decoder_conf"] = {"linear_units": width, **(result.get("decoder_conf") or {})}
    return {**result, **TEN_LINES, "encoder": f"todm_{config['encoder']}", "encoder_conf": encoder_conf}


def narrow(conf: Any, width: int) -> Any:
    """Options of one part with each width that they state set to ``width``."""
    if not isinstance(conf, Mapping):
        return conf
    return {key: width if key in WIDTHS and isinstance(value, int) else value for key, value in conf.items()}


def signature(config: Mapping[str, Any]) -> str:
    """Equal for configurations that differ in nothing that a dry run can tell apart: numbers that only training minds."""
    irrelevant = ("batch_bins", "max_epoch", "patience", "keep_nbest_models", "num_workers", "log_interval", "seed")
    told = {key: value for key, value in config.items() if key not in irrelevant}
    return json.dumps(told, sort_keys=True, default=str)


def attempt(task: tuple[Path, dict[str, Any]]) -> tuple[Path, str, str]:
    """In another process: a configuration's path and the configuration -> path, result, line."""
    path, config = task
    try:
        with tempfile.TemporaryDirectory() as folder:
            return path, *_try(config, Path(folder))
    except UserError as error:
        return path, REFUSED, str(error)
    except BaseException as error:  # whatever it is: it was to be one line
        place = traceback.extract_tb(error.__traceback__)[-1]
        words = " ".join(str(error).split())[:160]
        return path, WRONG, f"{type(error).__name__}: {words} ({Path(place.filename).name}:{place.lineno})"


def _try(config: Mapping[str, Any], folder: Path) -> tuple[str, str]:
    from espnet_todm.bench.dry_run import build, dry_run
    from espnet_todm.deploy.extract import Supernet, extract
    from espnet_todm.espnet.options import parse_training

    torch.set_num_threads(1)
    written = folder / "train.yaml"
    written.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    audio = config.get("frontend") is not None or not config.get("input_size")
    size = [] if audio else ["--input_size", "80"]
    options = parse_training(["--config", str(written), "--token_list", "-", "--output_dir", "-", *size])
    dry_run(options, vocabulary=30, utterances=2, seconds=2.0)
    model, _, _ = build(options, 30)
    whole = Supernet(model.eval(), {**vars(options), "normalize": None}, {"config": str(written)})
    for name, subnet in model.encoder.sizes.items():
        extract(whole, subnet, folder / name)
    return WORKS, ""


def run_all(configs: Mapping[Path, dict[str, Any]], width: int, folder: Path, jobs: int) -> list[Outcome]:
    """Outcomes of all configurations, in order."""
    changed = {path: supernet(config, width) for path, config in configs.items()}
    first = {signature(config): path for path, config in reversed(changed.items())}
    tasks = [(path, changed[path]) for path in first.values()]
    context = multiprocessing.get_context("fork")  # ESPnet is imported once
    with context.Pool(jobs, maxtasksperchild=TASKS_A_PROCESS) as pool:
        finished = tqdm(pool.imap_unordered(attempt, tasks), total=len(tasks), unit="configuration")
        done = {path: (result, line) for path, result, line in finished}
    outcomes = []
    for path, config in configs.items():
        result, line = done[first[signature(changed[path])]]
        outcomes.append(Outcome(path.relative_to(folder).as_posix(), config["encoder"], result, line))
    return outcomes


def report(outcomes: Sequence[Outcome], label: str, width: int, command: str) -> str:
    """The page: counts by encoder, then each line that a configuration met, with how many met it and one of them."""
    counts = collections.Counter((outcome.encoder, outcome.result) for outcome in outcomes)
    encoders = sorted({outcome.encoder for outcome in outcomes})
    rows = [[name, *(str(counts[name, result]) for result in (WORKS, REFUSED, WRONG))] for name in encoders]
    rows.append(["all", *(str(sum(counts[name, r] for name in encoders)) for r in (WORKS, REFUSED, WRONG))])
    narrowed = f"Layers were made {width} wide; no other option was changed. " if width else ""
    parts = [
        "# Stock configurations as supernets",
        f"Data: random speech, one dry run each, no training. Configurations: {label}.",
        f"Each configuration was changed by the ten lines of the README, but for its front end, with"
        f" distillation in place of `split_batch`. A configuration *works* if its model is built, one"
        f" step of each kind of its training runs, a validation reports every key that selects models, and all its sizes are"
        f" extracted. {narrowed}Random projections replaced the front ends of s3prl.",
        f"Made with `{command}`.",
        markdown_table(["encoder", WORKS, REFUSED, WRONG], rows).rstrip(),
    ]
    for result in (REFUSED, WRONG):
        lines = collections.Counter(outcome.line for outcome in outcomes if outcome.result == result)
        if lines:
            example = {o.line: o.path for o in reversed(outcomes) if o.result == result}
            table = [[str(n), f"`{escaped(line)}`", f"`{example[line]}`"] for line, n in lines.most_common()]
            parts += [
                f"## {result.capitalize()}",
                markdown_table(["configurations", "line", "one of them"], table).rstrip(),
            ]
    return "\n\n".join(parts) + "\n"


def escaped(line: str) -> str:
    """As a cell of a table, without names of temporary files."""
    return re.sub(r"/\S*/train\.yaml", "train.yaml", line).replace("|", "\\|").replace("`", "'")


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the configurations are")
    parser.add_argument("--glob", default="*/asr1/conf/**/*.yaml", help="which files of the folder to look at")
    parser.add_argument("--encoders", nargs="+", help="stock encoders to try (default: all that have a supernet)")
    parser.add_argument("--width", type=int, default=32, help="of all layers; 0 leaves them as they are")
    parser.add_argument("--jobs", type=int, default=1, help="configurations at a time")
    parser.add_argument("--label", help="what the configurations are, for the page (default: the folder)")
    parser.add_argument("--output", type=Path, help="file for the page (default: print it)")
    parser.add_argument("--list", action="store_true", help="also print each configuration's outcome")
    options = parser.parse_args(arguments)
    espnet_todm.register()
    from espnet2.asr.frontend import fused
    from espnet2.tasks.asr import frontend_choices

    from espnet_todm.deploy.stock import STOCK

    frontend_choices.classes["s3prl"] = StubFrontend
    fused.S3prlFrontend = StubFrontend
    configs = find(options.folder, options.glob, options.encoders or STOCK)
    outcomes = run_all(configs, options.width, options.folder, options.jobs)
    if options.list:
        for outcome in outcomes:
            print(f"{outcome.result}\t{outcome.path}\t{outcome.line}")
    command = f"python benchmarks/stock_configs.py egs2 --width {options.width}"
    page = report(outcomes, options.label or options.folder.name, options.width, command)
    if options.output:
        write_text(options.output, page)
    else:
        print(page)
    return 1 if any(outcome.result == WRONG for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
