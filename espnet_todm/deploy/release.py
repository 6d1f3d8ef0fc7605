"""Release a size for a device: its exported files, programs that run them in sherpa-onnx, and checksums.

Nothing in the folder is unpickled, and nothing needs PyTorch, ESPnet or this package. For ESPnet there is
:mod:`espnet_todm.deploy.pack`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

from espnet_todm.card import CARD, read_card
from espnet_todm.deploy.folder import README, check_own, check_replaceable
from espnet_todm.deploy.forms.base import Form
from espnet_todm.deploy.forms.registry import FORMATS, exported_precisions, open_exported
from espnet_todm.deploy.onnx.folder import CARD_DIGEST, TOKENS
from espnet_todm.deploy.runtime.onnx import OnnxRuntime
from espnet_todm.errors import UserError
from espnet_todm.util.files import PathLike, atomic_directory, hash_file, write_text

LICENSE, SUMS = "LICENSE", "SHA256SUMS"
PREFERRED = ("int8", "fp32", "fp16")  # the programs use the first that is there


class Exported(NamedTuple):
    """An export of a size: its folder, its format, and its model in each precision that it has, the preferred one first."""

    folder: Path
    form: Form
    models: Mapping[str, OnnxRuntime]

    @property
    def preferred(self) -> OnnxRuntime:
        """The model that the programs use."""
        return next(iter(self.models.values()))

    @property
    def files(self) -> Iterator[Path]:
        """What is released of it."""
        for model in self.models.values():
            yield from (graph.path for graph in model.graphs.values())
        yield from (self.folder / TOKENS, self.folder / CARD)


def release(
    exports: Sequence[Exported],
    output: PathLike,
    readme: str,
    licence: Optional[PathLike] = None,
    overwrite: bool = False,
) -> Path:
    """Write the folder ``output/<name>`` from all exports of an extracted size, see :func:`exports_of`, and return it.

    It holds a folder for each export format, with the files of all precisions, tokens.txt, card.json, recognize.py and
    recognize.c; README.md; LICENSE, if one is given; and SHA256SUMS, which ``sha256sum -c`` checks.

    Args:
        readme: text of README.md, see :func:`espnet_todm.report.release_card.release_card`.
        licence: file with the licence of the model.
        overwrite: replace the output of an earlier run.

    Raises:
        UserError: a file is missing or outside of the size's folder, or the output exists.
    """
    source = exports[0].folder.parent
    target = Path(output) / source.resolve().name
    check_replaceable(target, (target / SUMS).is_file(), overwrite)
    if licence is not None and not Path(licence).is_file():
        raise UserError(f"--license: {licence}: no such file")
    check_own(source, [file for export in exports for file in export.files])
    with atomic_directory(target) as folder:
        for export in exports:
            _write(export, folder / export.folder.name)
        write_text(folder / README, readme)
        if licence is not None:
            shutil.copyfile(licence, folder / LICENSE)
        write_text(folder / SUMS, _sums(folder))
    return target


def exports_of(subnet: PathLike) -> list[Exported]:
    """The exports in the folder of a size. Raises UserError when there is none, one of an earlier version of the size, or a
    missing or damaged file."""
    source = Path(subnet)
    read_card(source / CARD)
    folders = [source / name for name in FORMATS if (source / name).is_dir()]
    if not folders:
        raise UserError(
            f"{source}: has no export ({' or '.join(FORMATS)}); write one with python -m espnet_todm.bin.export {source}"
        )
    return [_open(folder, hash_file(source / CARD)) for folder in folders]


def _open(folder: Path, card: str) -> Exported:
    """card: digest of the size's card. Raises UserError when a graph was made of a size with another card."""
    there = sorted(exported_precisions(folder), key=PREFERRED.index)
    opened = {precision: open_exported(folder, precision) for precision in there or ["fp32"]}
    models = {precision: model for precision, (_, model) in opened.items()}
    for graph in (graph for model in models.values() for graph in model.graphs.values()):
        of = str(graph.metadata.get(CARD_DIGEST))
        if of != card:
            raise UserError(
                f"{graph.path}: was made of another version of the size ({CARD_DIGEST} is {of[:16]}, but the SHA-256 of"
                f" {folder.parent / CARD} is {card[:16]}); export the size again"
            )
    form, _ = next(iter(opened.values()))
    return Exported(folder, form, models)


def _write(export: Exported, folder: Path) -> None:
    """The files of one export, and its programs."""
    folder.mkdir()
    for file in export.files:
        shutil.copyfile(file, folder / file.name)
    for name, source in export.form.programs(export.preferred).items():
        write_text(folder / name, source)


def _sums(folder: Path) -> str:
    """A line for each file in the folder, as ``sha256sum`` writes it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return "".join(f"{hash_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
