"""Write small models as ONNX, in the form that sherpa-onnx runs as it is."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Optional

import torch

from espnet_todm import __version__
from espnet_todm.deploy.card import read_card
from espnet_todm.deploy.load import load_extracted
from espnet_todm.deploy.onnx_forms import Graph, runtime_form
from espnet_todm.deploy.onnx_state_space import DOMAIN, as_scans, has_state_space
from espnet_todm.deploy.onnx_tokens import tokens_text
from espnet_todm.errors import UserError
from espnet_todm.files import PathLike, atomic_directory, hash_file, write_json, write_text

PRECISIONS = ("fp32", "int8", "fp16")
OPSET = 17  # the first with LayerNormalization as one operator
LEAST_OPSET = 17


@dataclass(frozen=True)
class ExportOptions:
    """What to write.

    Args:
        precisions: of PRECISIONS; fp32 is always written, since the others are made from it.
        opset: ONNX's version of operators.
    """

    precisions: Sequence[str] = ("fp32",)
    opset: int = OPSET

    def __post_init__(self) -> None:
        for precision in self.precisions:
            if precision not in PRECISIONS:
                raise UserError(f"precision: {precision!r} is unknown; allowed: {', '.join(PRECISIONS)}")


def export(folder: PathLike, output: Optional[PathLike] = None, options: Optional[ExportOptions] = None) -> Path:
    """Write the model of an extracted subnet's folder to ``output``, by default its subfolder ``onnx``.

    Raises:
        UserError: the folder is none of ours, the model has a part without an ONNX form, a package is missing, or
            ``output`` is there and was not written by this function.
    """
    options = options or ExportOptions()
    onnx = needed("onnx")
    source = Path(folder)
    target = Path(output) if output is not None else source / "onnx"
    card = read_card(source / "card.json")
    check_replaceable(target)
    check_opset(options.opset, onnx)
    model, config = load_extracted(source)
    form = runtime_form(model, config)
    about = {
        "todm_subnet": card["name"],
        "todm_card_sha256": hash_file(source / "card.json"),
        "todm_version": __version__,
        "todm_encoder": card["encoder"],
    }
    with atomic_directory(target) as place:
        for graph in form.graphs:
            write_graph(graph, place / f"{graph.name}.onnx", options.opset, about)
        write_text(place / "tokens.txt", tokens_text(form.tokens))
        write_json(place / "card.json", card)
    logging.info("%s: written", target)
    return target


def write_graph(graph: Graph, path: Path, opset: int, about: Mapping[str, Any]) -> None:
    """Record a graph and write it with its metadata."""
    onnx = needed("onnx")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer's: of shapes that our own checks look at
        torch.onnx.export(
            graph.module,
            graph.example,
            str(path),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_axes={name: dict(axes) for name, axes in (*graph.inputs.items(), *graph.outputs.items())},
            opset_version=opset,
            custom_opsets={DOMAIN: 1} if has_state_space(graph.module) else None,
            dynamo=False,
        )
    model = onnx.load(str(path))
    as_scans(model, onnx)
    for key, value in {**graph.metadata, **about}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, str(value)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def needed(name: str) -> Any:
    """Import an optional package. Raises UserError, naming the extra that has it, when it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f"export needs {name} ({error}); pip install 'espnet_todm[deploy]'") from None


def check_opset(opset: int, onnx: Any) -> None:
    """Raises UserError for operators that the exporter or the installed runtime lacks."""
    from torch.onnx._constants import ONNX_TORCHSCRIPT_EXPORTER_MAX_OPSET as most

    if not LEAST_OPSET <= opset <= most:
        raise UserError(f"opset: {opset} cannot be written; allowed: {LEAST_OPSET} to {most}")


def check_replaceable(target: Path) -> None:
    """Raises UserError when ``target`` is there and is no former export."""
    if target.exists() and not ((target / "card.json").is_file() and (target / "tokens.txt").is_file()):
        raise UserError(f"output: {target} exists and is no former export; name another folder or remove it")
