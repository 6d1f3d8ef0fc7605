"""Stage 10: collect ESPnet's statistics (lengths, global mean and variance) with several jobs and without Kaldi."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from espnet2.bin.aggregate_stats_dirs import aggregate_stats_dirs

from espnet_todm import hook
from espnet_todm.errors import UserError
from espnet_todm.util.files import PathLike, atomic_directory, read_table, write_table
from espnet_todm.util.launch import launch

SPLITS = ("train", "valid")


def collect_statistics(
    training: Sequence[str], train_scp: PathLike, valid_scp: PathLike, output: PathLike, **launcher: Any
) -> None:
    """Write ``output/{train,valid}/{speech_shape, text_shape, feats_stats.npz, ...}``.

    Args:
        training: arguments of the training command, except those that this function sets.
        train_scp, valid_scp: tables whose keys are the utterances of the two sets.
        launcher: options of :func:`espnet_todm.util.launch.launch`. ``jobs`` parts run at a time.

    Raises:
        UserError: a table is missing or empty, or a job fails.
    """
    tables = {split: read_table(scp) for split, scp in zip(SPLITS, (train_scp, valid_scp))}
    for split, scp in zip(SPLITS, (train_scp, valid_scp)):
        if not tables[split]:
            raise UserError(f"{scp}: holds no utterance, so there are no statistics of the {split} set")
    parts = max(1, min(launcher.get("jobs", 1), *(len(table) for table in tables.values())))
    with atomic_directory(output) as folder:
        arguments = [_part(folder / f"part{n}", n, parts, tables, training) for n in range(parts)]
        launch(_collect, arguments, name="statistics", **launcher)
        dirs = [folder / f"part{n}" for n in range(parts)]
        aggregate_stats_dirs(dirs, folder, log_level="WARNING", skip_sum_stats=False)
        for part in dirs:
            shutil.rmtree(part)


def append_vocabulary(folder: PathLike, vocabulary: int) -> None:
    """Change ``text_shape`` from ``length`` to ``length,vocabulary``. ESPnet's batch samplers count elements with it."""
    for split in SPLITS:
        shapes = Path(folder) / split / "text_shape"
        write_table(shapes, {key: f"{length.split(',')[0]},{vocabulary}" for key, length in read_table(shapes).items()})


def _part(
    folder: Path, number: int, parts: int, tables: dict[str, dict[str, str]], training: Sequence[str]
) -> list[str]:
    """Arguments of the job that collects part ``number`` of ``parts``."""
    # num_workers is 0, since workers of the launcher may not have subprocesses. Reading features is fast.
    arguments = [*training, "--collect_stats", "true", "--num_workers", "0", "--output_dir", str(folder)]
    for split, table in tables.items():
        keys = sorted(table)
        chosen = keys[len(keys) * number // parts : len(keys) * (number + 1) // parts]
        listed = folder / f"{split}.keys"
        write_table(listed, {key: table[key] for key in chosen})
        arguments += [f"--{split}_shape_file", str(listed)]
    return arguments


def _collect(arguments: list[str]) -> None:
    hook.install(pipes=False)
    from espnet_todm.espnet.options import train

    train(arguments)
