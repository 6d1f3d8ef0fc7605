"""All export formats, and the lookup of the format of a model or a folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from espnet_todm.deploy.forms.base import Form
from espnet_todm.deploy.onnx.folder import PRECISIONS, TOKENS, read_tokens
from espnet_todm.deploy.runtime.onnx import OnnxRuntime, Session
from espnet_todm.errors import UserError
from espnet_todm.util.files import PathLike

# Modules of espnet_todm/deploy/forms. The first that recognises a folder is used, so the most general one is last.
NAMES = (
    "streaming_transducer",
    "transducer",
    "streaming_ctc",
    "ctc",
)
FORMS: tuple[Form, ...] = tuple(import_module(f"espnet_todm.deploy.forms.{name}").FORM for name in NAMES)
FORMATS = tuple(dict.fromkeys(form.format for form in reversed(FORMS)))  # the first is the default


def named(name: str) -> Form:
    """The export format with this name."""
    return next(form for form in FORMS if form.name == name)


def of_format(name: str) -> list[Form]:
    """All classes for one value of ``--format``. Raises UserError when there is none."""
    if name not in FORMATS:
        raise UserError(f"format: {name!r} is unknown; allowed: {', '.join(FORMATS)}")
    return [form for form in FORMS if form.format == name]


def form_for(model: Any, format_name: str) -> Form:
    """The class that exports a model in a format. Raises UserError when the format is not for this kind of model."""
    for form in of_format(format_name):
        if form.fits(model):
            return form
    kind = "transducers" if model.use_transducer_decoder else "CTC models"
    raise UserError(f"format: {format_name} is not for {kind}; allowed: {FORMATS[0]}")


def form_of(parts: Collection[str], metadata: Mapping[str, str]) -> Form:
    """The export format of a folder with these graphs. ``metadata``: of the first graph."""
    return next(form for form in FORMS if set(form.parts) == set(parts) and form.recognises(metadata))


def exported_files(folder: PathLike, precision: str = "fp32") -> dict[str, Path]:
    """The file of each graph of an exported folder. Raises UserError when one is missing, or the precision is unknown."""
    path = Path(folder)
    if precision not in PRECISIONS:
        raise UserError(f"precision: {precision!r} is unknown; allowed: {', '.join(PRECISIONS)}")
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; python -m espnet_todm.bin.export makes it")
    files = {part: path / f"{part}{PRECISIONS[precision]}" for part in _parts(path)}
    for file in files.values():
        if not file.is_file():
            there = ", ".join(exported_precisions(path)) or "none at all"
            raise UserError(f"{file}: no such file; the folder has precision: {there}")
    return files


def exported_precisions(folder: PathLike) -> list[str]:
    """The precisions in which the first graph of an exported folder is there."""
    path = Path(folder)
    return [name for name, end in PRECISIONS.items() if (path / f"{_parts(path)[0]}{end}").is_file()]


def _parts(folder: Path) -> tuple[str, ...]:
    """Names of the graphs in an exported folder."""
    return next((form.parts for form in FORMS if any(folder.glob(f"{form.parts[0]}*.onnx"))), FORMS[-1].parts)


def open_onnx(folder: PathLike, precision: str = "fp32", threads: int = 1) -> OnnxRuntime:
    """An exported model in onnxruntime. Raises UserError when a file is missing or damaged, or onnxruntime is missing."""
    return open_exported(folder, precision, threads)[1]


def open_exported(folder: PathLike, precision: str = "fp32", threads: int = 1) -> tuple[Form, OnnxRuntime]:
    """The export format of a folder, and its model in onnxruntime. Raises UserError as :func:`open_onnx`."""
    files, tokens = exported_files(folder, precision), read_tokens(Path(folder) / TOKENS)
    graphs = {part: Session(path, threads) for part, path in files.items()}
    form = form_of(graphs, next(iter(graphs.values())).metadata)
    return form, form.runtime(graphs, tokens)
