"""The folder of a small model. Extraction, fine-tuning and packing write it; ``load_extracted`` reads it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import sentencepiece
import yaml
from safetensors.torch import save_file
from torch import Tensor

from espnet_todm.card import CARD, WEIGHTS, identify_weights
from espnet_todm.errors import UserError, one_line
from espnet_todm.espnet.checkpoint_files import save_checkpoint
from espnet_todm.espnet.config_inheritance import CONFIG
from espnet_todm.espnet.inputs import check_statistics
from espnet_todm.espnet.load import FILE_OPTIONS
from espnet_todm.util.files import PathLike, read_json

IMAGES = "images"  # ESPnet's name
README = "README.md"  # of what is given away
CHECKPOINT = "model.pth"  # the same weights for ESPnet, which cannot read safetensors


def check_sentencepiece(path: PathLike) -> None:
    """Raises UserError unless the file is a sentencepiece model."""
    try:
        sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError, TypeError) as error:
        raise UserError(f"bpemodel: {path}: no model of sentencepiece, or damaged ({one_line(error, 100)})") from None


# FILE_OPTIONS -> the check of the file that the option names.
CHECKS = {"stats_file": check_statistics, "bpemodel": check_sentencepiece, "latency_table": read_json}


def write_config(conf: Mapping[str, Any], folder: Path, final: Optional[Path] = None) -> None:
    """Write config.yaml and copies of the files it names into ``folder``.

    final: the folder that the written config gives for the copies; ``Path(".")`` for bare names. None keeps the recipe's
    paths, because asr.sh packs files under them. This package always reads the copies.
    """
    written = dict(conf)
    for section, key in FILE_OPTIONS:
        owner = conf.get(section) if section else conf
        if owner and owner.get(key):
            CHECKS[key](owner[key])  # the config may come from others, and the copy may be published
            shutil.copyfile(owner[key], folder / Path(owner[key]).name)
            moved = {**owner, key: owner[key] if final is None else str(final / Path(owner[key]).name)}
            written = {**written, section: moved} if section else {**written, key: moved[key]}
    (folder / CONFIG).write_text(yaml.safe_dump(written, sort_keys=False, allow_unicode=True), encoding="utf-8")


def write_images(experiment: Path, folder: Path) -> None:
    """Copy the plots ``images/*.png`` of a training into ``folder``. Stage 14 of ESPnet's asr.sh packs them."""
    drawn = experiment / IMAGES
    (folder / IMAGES).mkdir()
    for picture in sorted(drawn.glob("*.png")):
        shutil.copyfile(picture, folder / IMAGES / picture.name)


def write_weights(state: Mapping[str, Tensor], folder: Path) -> dict[str, str]:
    """Write the weights as safetensors and for ESPnet. Return their entry for the card (:func:`identify_weights`)."""
    contiguous = {name: value.contiguous() for name, value in state.items()}
    save_file(contiguous, folder / WEIGHTS)
    save_checkpoint(contiguous, folder / CHECKPOINT)
    return identify_weights(folder / WEIGHTS)


def check_own(source: Path, files: Iterable[Path]) -> None:
    """Raises UserError when one of the files that are given away with the folder ``source`` lies, by its path or as a link,
    outside of it."""
    for file in files:
        if os.path.lexists(file) and source.resolve() not in file.resolve().parents:
            raise UserError(
                f"{file}: is {file.resolve()}, outside of {source}; a size is packed from files of its folder only"
            )


def check_replaceable(path: Path, ours: bool, overwrite: bool) -> None:
    """Raises UserError when ``path`` exists, unless an earlier run wrote it (``ours``) and it is to be overwritten."""
    if path.exists() and not (overwrite and ours):
        raise UserError(f"{path}: exists; give another --output, or --overwrite to replace what an earlier run wrote")


def subnet_folders(experiment: PathLike, sizes: Sequence[str] = ()) -> list[Path]:
    """Folders of an experiment's extracted models: those of ``sizes``, or all."""
    root = Path(experiment) / "subnets"
    return [root / size for size in sizes] if sizes else sorted(path.parent for path in root.glob(f"*/{CARD}"))


def extracted_folders(experiment: PathLike, sizes: Sequence[str] = ()) -> list[Path]:
    """As :func:`subnet_folders`. Raises UserError where nothing was extracted."""
    folders = subnet_folders(experiment, sizes)
    if not folders:
        raise UserError(f"{experiment}: has no subnets/<size>; write them with python -m espnet_todm.bin.extract")
    return folders
