"""Pack a size for release: a folder, and a zip that ESPnet's ``Speech2Text.from_pretrained`` loads.

Their configs give bare file names, so both work in any place.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from espnet_todm.card import CARD, WEIGHTS
from espnet_todm.deploy.folder import CHECKPOINT, README, check_own, check_replaceable, write_config
from espnet_todm.deploy.forms.registry import FORMATS
from espnet_todm.errors import UserError, damage_told
from espnet_todm.espnet.checkpoint_files import save_checkpoint
from espnet_todm.espnet.config_inheritance import CONFIG
from espnet_todm.espnet.load import FILE_OPTIONS, load_extracted
from espnet_todm.util.files import PathLike, atomic_directory, atomic_path
from espnet_todm.util.vocabulary import TOKENS


class Packed(NamedTuple):
    """The paths that :func:`pack` wrote."""

    folder: Path
    archive: Path


def pack(subnet: PathLike, output: PathLike, readme: str, overwrite: bool = False) -> Packed:
    """Write ``output/<name>/`` and ``output/<name>.zip`` from the folder of an extracted size.

    The folder holds model.safetensors, config.yaml and the files it names, card.json, tokens.txt and README.md. If the size
    was exported, it also holds onnx/ and streaming-onnx/. The archive has model.pth for ESPnet instead of these two.

    Args:
        readme: text of README.md, see :func:`espnet_todm.report.model_card.model_card`.
        overwrite: replace the output of an earlier run.

    Raises:
        UserError: the size's folder is damaged, its weights do not match the card, a link or the config leads to a file
            outside the folder, or the output exists.
    """
    source = Path(subnet)
    name = source.resolve().name
    packed = Packed(Path(output) / name, Path(output) / f"{name}.zip")
    _check_output(packed, source, overwrite)
    model, config = load_extracted(source)
    _check_files(source, config)
    with atomic_directory(packed.folder) as folder:
        write_config({**config, "output_dir": "."}, folder, Path("."))
        for file in (WEIGHTS, CARD):
            shutil.copyfile(source / file, folder / file)
        (folder / TOKENS).write_text("\n".join(model.token_list) + "\n", encoding="utf-8")
        (folder / README).write_text(readme, encoding="utf-8")
        _write_archive(folder, packed.archive, model.state_dict())
        for exported in FORMATS:
            if (source / exported).is_dir():
                shutil.copytree(source / exported, folder / exported)
    return packed


def unpack(archive: PathLike, output: PathLike) -> Path:
    """Unpack an archive of :func:`pack` into the folder ``output``, which :func:`load_extracted` can read.

    Raises UserError when the archive is missing or damaged, a path in it leads out of the folder, or ``output`` exists.
    """
    if Path(output).exists():
        raise UserError(f"{output}: exists; give another --output")
    if not Path(archive).is_file():
        raise UserError(f"{archive}: no such file")
    with damage_told(archive, "get it again"), zipfile.ZipFile(archive) as packed:
        for entry in packed.infolist():
            link = stat.S_ISLNK(entry.external_attr >> 16)
            if link or _leads_out(entry.filename):
                raise UserError(f"{archive}: {entry.filename!r} in it leads out of its folder; nothing is unpacked")
        with atomic_directory(output) as folder:
            packed.extractall(folder)
    return Path(output)


def _leads_out(name: str) -> bool:
    """Whether a path in an archive is outside the archive's folder on any operating system."""
    parts = re.split(r"[/\\]", name)
    return ".." in parts or parts[0] == "" or ":" in parts[0]


def _check_files(source: Path, config: Mapping[str, Any]) -> None:
    """Raises UserError when the config or a link leads to a file outside the folder."""
    named = [(config.get(section) or {} if section else config).get(key) for section, key in FILE_OPTIONS]
    exports = [source / name for name in FORMATS if (source / name).exists()]
    exported = [file for folder in exports for file in (folder, *folder.rglob("*"))]
    check_own(source, (source / WEIGHTS, source / CARD, source / CONFIG, *map(Path, filter(None, named)), *exported))


def _check_output(packed: Packed, source: Path, overwrite: bool) -> None:
    if packed.folder.resolve() == source.resolve():
        raise UserError(f"--output: {packed.folder.parent} holds {source} itself; give another folder")
    for path in packed:
        check_replaceable(path, path.is_file() or (path / README).is_file(), overwrite)


def _write_archive(folder: Path, archive: Path, state: dict[str, torch.Tensor]) -> None:
    """Pack the files of ``folder``, and the weights as model.pth, with ESPnet's packer."""
    from espnet2.main_funcs.pack_funcs import pack as espnet_pack

    with tempfile.TemporaryDirectory() as temporary:
        staging = Path(temporary)
        shutil.copytree(folder, staging, dirs_exist_ok=True)
        others = sorted(path.name for path in folder.iterdir() if path.name != CONFIG)
        save_checkpoint(state, staging / CHECKPOINT)
        # ESPnet stores paths relative to the working directory, and prints each.
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
    """Change the working directory inside the context."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
