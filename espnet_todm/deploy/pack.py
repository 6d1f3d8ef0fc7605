"""Pack a size for others: a folder to release, and the zip that ESPnet's ``Speech2Text.from_pretrained`` loads.

Both name their files by bare names, so they work wherever they are put.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from espnet_todm.card import CARD, WEIGHTS
from espnet_todm.deploy.folder import CHECKPOINT, write_config
from espnet_todm.deploy.load import CONFIG, load_extracted
from espnet_todm.deploy.onnx.folder import FOLDER as ONNX
from espnet_todm.errors import UserError
from espnet_todm.files import PathLike, atomic_directory, atomic_path
from espnet_todm.trainers.checkpoint_files import save_checkpoint

README = "README.md"
TOKENS = "tokens.txt"


class Packed(NamedTuple):
    """What :func:`pack` wrote."""

    folder: Path
    archive: Path


def pack(subnet: PathLike, output: PathLike, readme: str, overwrite: bool = False) -> Packed:
    """Write ``output/<name>/`` and ``output/<name>.zip`` from the folder of an extracted size.

    The folder holds model.safetensors, config.yaml and what it names, card.json, tokens.txt and README.md, and onnx/ if
    the size was exported; the archive holds the same without onnx/, and model.pth for ESPnet.

    Args:
        readme: text of README.md, see :func:`espnet_todm.report.model_card.model_card`.
        overwrite: replace what an earlier run wrote.

    Raises:
        UserError: the size's folder is damaged, its weights are not the card's, or the output exists already.
    """
    source = Path(subnet)
    name = source.resolve().name
    packed = Packed(Path(output) / name, Path(output) / f"{name}.zip")
    _check_output(packed, source, overwrite)
    model, config = load_extracted(source)
    with atomic_directory(packed.folder) as folder:
        write_config({**config, "output_dir": "."}, folder, Path("."))
        for file in (WEIGHTS, CARD):
            shutil.copyfile(source / file, folder / file)
        (folder / TOKENS).write_text("\n".join(model.token_list) + "\n", encoding="utf-8")
        (folder / README).write_text(readme, encoding="utf-8")
        _write_archive(folder, packed.archive, model.state_dict())
        if (source / ONNX).is_dir():
            shutil.copytree(source / ONNX, folder / ONNX)
    return packed


def _check_output(packed: Packed, source: Path, overwrite: bool) -> None:
    if packed.folder.resolve() == source.resolve():
        raise UserError(f"--output: {packed.folder.parent} holds {source} itself; give another folder")
    for path in packed:
        ours = path.is_file() or (path / README).is_file()
        if path.exists() and not (overwrite and ours):
            raise UserError(f"{path}: exists; give another --output, or --overwrite to replace an earlier packing")


def _write_archive(folder: Path, archive: Path, state: dict[str, torch.Tensor]) -> None:
    """ESPnet's own packer on the files of ``folder`` and the weights as it reads them."""
    from espnet2.main_funcs.pack_funcs import pack as espnet_pack

    with tempfile.TemporaryDirectory() as temporary:
        staging = Path(temporary)
        shutil.copytree(folder, staging, dirs_exist_ok=True)
        others = sorted(path.name for path in folder.iterdir() if path.name != CONFIG)
        save_checkpoint(state, staging / CHECKPOINT)
        # ESPnet names files as they are seen from where it runs, and prints each.
        with _inside(staging), contextlib.redirect_stdout(io.StringIO()):
            espnet_pack(
                files={"asr_model_file": CHECKPOINT},
                yaml_files={"asr_train_config": CONFIG},
                outpath=archive.name,
                option=others,
            )
        with atomic_path(archive) as whole:
            shutil.copyfile(staging / archive.name, whole)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """The working folder is this one inside."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
