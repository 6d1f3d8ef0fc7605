"""Write extracted models as ONNX, in the export formats of :mod:`espnet_todm.deploy.forms`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, Callable, Optional

import torch
from torch import Tensor

from espnet_todm import __version__
from espnet_todm.card import CARD, read_card
from espnet_todm.decode.features import read_features
from espnet_todm.deploy.forms.base import Export, Graph
from espnet_todm.deploy.forms.registry import form_for, of_format
from espnet_todm.deploy.int8.files import Int8Files
from espnet_todm.deploy.onnx.folder import CARD_DIGEST, FOLDER, PRECISIONS, TOKENS
from espnet_todm.deploy.onnx.quantize import CALIBRATION_UTTERANCES, to_fp16
from espnet_todm.deploy.onnx.recipe import DYNAMIC, METHODS, STATIC, Recipe, check_method
from espnet_todm.deploy.onnx.state_space import DOMAIN, as_scans, has_state_space
from espnet_todm.deploy.onnx.tokens import tokens_text
from espnet_todm.errors import UserError, one_line
from espnet_todm.espnet.load import load_extracted
from espnet_todm.models.kaldi_fbank import on_features
from espnet_todm.util.files import PathLike, atomic_directory, hash_file, write_json, write_text
from espnet_todm.util.optional import needed

OPSET, OPSETS = 17, (14, 20)  # 17 has layer norm as one operator; range of torch's exporter
# Newer torch uses another exporter by default, which needs more packages.
_TRACING: dict[str, Any] = {"dynamo": False} if "dynamo" in signature(torch.onnx.export).parameters else {}
# The file and the model compute the same function; only the order of sums differs.
TOLERANCE = 1e-3
Repairer = Callable[[Int8Files, Recipe], Mapping[str, Any]]


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export.

    Args:
        precisions: keys of PRECISIONS; fp32 is always written, because the others are made from it.
        int8: key of METHODS.
        calibrate: feats.scp on which static int8 measures activations.
        opset: version of ONNX's operator set.
        format: export format, see :class:`espnet_todm.deploy.forms.base.Form`.
        chunk: encoder frames of a chunk and of its left context, for streaming formats; default: the model's decode_chunk.

    Raises:
        UserError: a value is not allowed.
    """

    precisions: Sequence[str] = ("fp32", "int8")
    int8: str = DYNAMIC
    calibrate: Optional[str] = None
    opset: int = OPSET
    format: str = FOLDER
    chunk: Optional[Sequence[int]] = None

    def __post_init__(self) -> None:
        for precision in self.precisions:
            if precision not in PRECISIONS:
                raise UserError(f"precision: {precision!r} is unknown; allowed: {', '.join(PRECISIONS)}")
        check_method(self.int8, self.calibrate)
        of_format(self.format)
        least, most = OPSETS
        if not least <= self.opset <= most:
            raise UserError(f"opset: {self.opset} cannot be written; allowed: {least} to {most}")


def export(
    folder: PathLike,
    output: Optional[PathLike] = None,
    options: Optional[ExportOptions] = None,
    gate: Optional[Callable[[Path], Any]] = None,
    repair: Optional[Repairer] = None,
) -> Path:
    """Export the model of an extracted subnet's folder to ``output``, by default its subfolder ``options.format``.

    Each graph becomes one file, such as ``model.onnx``. Other precisions are ``*.int8.onnx`` and ``*.fp16.onnx`` in the same
    folder, which also holds ``tokens.txt`` and the subnet's ``card.json``.

    Args:
        gate: called with the complete folder before it is moved to ``output``. If it raises an error, nothing is written.
            See :func:`espnet_todm.deploy.parity.gate.check_parity`.
        repair: writes the int8 files, beginning with the recipe of ``options``, and returns entries for the card. See
            :class:`espnet_todm.deploy.int8.search.Repair`. Default: the recipe as it is.

    Raises:
        UserError: the folder is not an extracted size, a part of the model cannot be exported, a package is missing, the
            runtime lacks the opset, or ``output`` exists and is not an earlier export.
        RuntimeError: the outputs of the file and of the model differ (a defect of this package).
    """
    options = options or ExportOptions()
    onnx, _ = needed("onnx"), needed("onnxruntime")
    source = Path(folder)
    target = Path(output) if output is not None else source / options.format
    card = read_card(source / CARD)
    _check_replaceable(target)
    model, config = on_features(*load_extracted(source))
    exported, about = form_for(model, options.format).export(model, config, options.chunk), _origin(source, card)
    calibration = _read_calibration(options, exported.graphs, repair is not None)
    with atomic_directory(target) as place, _named(place, target):
        _write(exported, place, options, about, onnx)
        made = _write_int8(exported, place, options, calibration, repair) if "int8" in options.precisions else {}
        write_json(place / CARD, {**card, **exported.card, **made})
        if gate is not None:
            gate(place)
    logging.info("%s: written", target)
    return target


def _origin(source: Path, card: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata that identify the subnet of a file."""
    return {
        "todm_subnet": card["name"],
        "todm_encoder": card["encoder"],
        CARD_DIGEST: hash_file(source / CARD),
        "todm_version": __version__,
    }


@contextmanager
def _named(place: Path, target: Path) -> Iterator[None]:
    """Error messages from inside the context name the final folder ``target`` instead of ``place``."""
    try:
        yield
    except UserError as error:
        error.args = (str(error).replace(str(place), str(target)),)
        raise


def _write(exported: Export, place: Path, options: ExportOptions, about: Mapping[str, Any], onnx: Any) -> None:
    """Write all graphs in all precisions but int8, and the tokens."""
    for graph in exported.graphs:
        path = place / f"{graph.name}{PRECISIONS['fp32']}"
        write_graph(graph, path, options.opset, about, onnx)
        _check_graph(graph, path, options.opset)
        if "fp16" in options.precisions:
            to_fp16(path, place / f"{graph.name}{PRECISIONS['fp16']}", onnx)
    write_text(place / TOKENS, tokens_text(exported.tokens))


def _write_int8(
    exported: Export,
    place: Path,
    options: ExportOptions,
    calibration: Optional[Sequence[Tensor]],
    repair: Optional[Repairer],
) -> Mapping[str, Any]:
    """Write the int8 files. Returns entries for the card."""
    measured = {graph.name: calibration for graph in exported.graphs if graph.features and calibration is not None}
    files, recipe = Int8Files(place, [graph.name for graph in exported.graphs], measured), METHODS[options.int8]
    if repair is not None:
        return repair(files, recipe)
    files.write(recipe)
    return {}


def write_graph(graph: Graph, path: Path, opset: int, about: Mapping[str, Any], onnx: Any) -> None:
    """Trace a graph and write it in float32, with its metadata."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns of shapes in checks of arguments
        torch.onnx.export(
            graph.module,
            graph.example,
            str(path),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_axes={name: dict(axes) for name, axes in (*graph.inputs.items(), *graph.outputs.items())},
            opset_version=opset,
            custom_opsets={DOMAIN: 1} if graph.features and has_state_space(graph.module) else None,
            **_TRACING,
        )
    model = onnx.load(str(path))
    as_scans(model, onnx)
    model.producer_name, model.producer_version = "espnet_todm", __version__
    onnx.helper.set_model_props(model, {key: str(value) for key, value in {**graph.metadata, **about}.items()})
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


@torch.no_grad()
def _check_graph(graph: Graph, path: Path, opset: int) -> None:
    """Compare a file with its module on other lengths than those of tracing. Raises UserError when the installed runtime
    cannot load the file, and RuntimeError when outputs differ."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        version = onnxruntime.__version__
        raise UserError(f"opset: {opset}: onnxruntime {version} cannot load the result ({one_line(error)})") from None
    inputs = _other_lengths(graph)
    expected = graph.module(*inputs)
    computed = session.run(None, {name: value.numpy() for name, value in zip(graph.inputs, inputs)})
    for name, one, other in zip(graph.outputs, expected if isinstance(expected, tuple) else (expected,), computed):
        difference = float((one - torch.from_numpy(other)).abs().max()) if one.shape == other.shape else float("inf")
        if not difference <= TOLERANCE:
            raise RuntimeError(f"{path.name}: output {name} differs from the model's by {difference:.3g}")


def _read_calibration(options: ExportOptions, graphs: Sequence[Graph], repaired: bool) -> Optional[list[Tensor]]:
    """Features (T, F) for static int8, which a repair may try, else None. Raises UserError when the table does not hold
    features, and when static int8 is asked for and no graph takes only features."""
    static = METHODS[options.int8].static
    if not (static or repaired) or options.calibrate is None:
        return None
    if static and not any(graph.features for graph in graphs):
        raise UserError(
            f"int8: {STATIC} is not possible with {options.format}, whose caches no features show; allowed: dynamic"
        )
    features = [value for _, value in read_features(options.calibrate, CALIBRATION_UTTERANCES)]
    if any(value.dim() != 2 for value in features):
        raise UserError(f"calibrate: {options.calibrate} holds audio; needed: features, as in feats.scp")
    return features


def _check_replaceable(target: Path) -> None:
    """Raises UserError when ``target`` exists and is not an earlier export."""
    if target.exists() and not (target.is_dir() and (target / TOKENS).is_file() and any(target.glob("*.onnx"))):
        raise UserError(f"output: {target} exists and is no former export; name another folder or remove it")


def _other_lengths(graph: Graph) -> list[Tensor]:
    """Inputs for a test of a graph: three utterances instead of the two of tracing, and features of other lengths."""
    longer = []
    for value, axes in zip(graph.example, graph.inputs.values()):
        for axis, name in axes.items():
            if name == "N":
                value = torch.cat([value, value.narrow(axis, 0, 1)], axis)
            elif name == "T" and graph.features:
                value = torch.cat([value, value, value], axis)
        longer.append(value)
    if graph.features:
        longer[1] = torch.tensor([longer[0].size(1), 5, 130])
    return longer
