"""What sherpa-onnx takes for granted of a folder, looked at before it does: a fault there ends the whole process.

Its rules were read in its sources and tried with broken models (sherpa-onnx 2.0.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_todm.deploy.onnx.folder import BLANKS, CTC, TOKENS, OnnxFolder, read_onnx_folder
from espnet_todm.deploy.runtime.streaming import tail_seconds
from espnet_todm.errors import UserError, one_line
from espnet_todm.util.acoustics import MEL_BINS
from espnet_todm.util.files import PathLike
from espnet_todm.util.optional import needed

ZIPFORMER_CTC, TRANSDUCER = "zipformer_ctc", "transducer"
STREAMING_CTC = "zipformer2_ctc"  # of the online recognizer
STREAMING_NUMBERS = (
    "T", "decode_chunk_len", "num_encoder_layers", "num_heads", "query_head_dims", "value_head_dims", "encoder_dims",
    "cnn_module_kernels", "left_context_len",
)  # fmt: skip
ENCODER_TYPES = ("conformer", "zipformer", "zipformer2")
_FLOAT, _INT32, _INT64 = 1, 6, 7  # onnx.TensorProto's numbers
_NAMES = {_FLOAT: "float32", _INT32: "int32", _INT64: "int64"}


@dataclass(frozen=True)
class Checked:
    """What a folder's model is to sherpa-onnx (ZIPFORMER_CTC, STREAMING_CTC or TRANSDUCER), its mel bins, and the
    silence that a streaming model needs behind each utterance."""

    model_type: str
    mel_bins: int
    tail_seconds: float = 0.0


def check_for_sherpa(folder: PathLike, precision: str = "fp32") -> Checked:
    """Raises UserError, in one line, for the first fault found."""
    exported = read_onnx_folder(folder, precision)
    graphs = {part: _Graph(path) for part, path in exported.parts.items()}
    if exported.kind == CTC:
        kind = STREAMING_CTC if "decode_chunk_len" in graphs["model"].metadata else ZIPFORMER_CTC
    else:
        kind = TRANSDUCER
    _CHECKS[kind](exported, graphs)
    features = _shape(next(iter(graphs.values())).inputs[0])
    tail = tail_seconds(graphs["model"].number("T")) if kind == STREAMING_CTC else 0.0
    return Checked(kind, features[2] or MEL_BINS, tail)


class _Graph:
    """Inputs, outputs and metadata of one file. Raises UserError when it is no ONNX file or keeps weights elsewhere."""

    def __init__(self, path: Path) -> None:
        onnx = needed("onnx")
        try:
            model = onnx.load(str(path), load_external_data=False)
        except Exception as error:  # protobuf's, whose class differs between its versions
            raise UserError(f"{path}: no ONNX file, or a damaged one ({one_line(error)})") from None
        if not model.graph.output:
            raise UserError(f"{path}: no ONNX file, or an empty one: its graph has no output")
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
            raise UserError(
                f"{path}: keeps weights in other files, which sherpa-onnx does not read; save it as one file"
            )
        weights = {tensor.name for tensor in model.graph.initializer}
        self.path = path
        self.inputs = [value for value in model.graph.input if value.name not in weights]
        self.outputs = list(model.graph.output)
        self.metadata = {entry.key: entry.value for entry in model.metadata_props}

    def check(self, what: str, values: list[Any], wanted: list[tuple[str, int, tuple[int, ...]]]) -> None:
        """Positions, ranks and types: (meaning, rank, types) of each value. More values than wanted are let be."""
        if len(values) < len(wanted):
            names = ", ".join(name for name, _, _ in wanted)
            raise UserError(f"{self.path}: has {len(values)} {what}s, but {len(wanted)} are needed: {names}")
        for value, (name, rank, types) in zip(values, wanted):
            kind, shape = value.type.tensor_type.elem_type, _shape(value)
            if kind not in types or len(shape) != rank:
                allowed = " or ".join(_NAMES[one] for one in types)
                raise UserError(
                    f"{self.path}: {what} {value.name} is {_NAMES.get(kind, f'of ONNX type {kind}')} with {len(shape)}"
                    f" dimensions, but {name} must be {allowed} with {rank}"
                )

    def number(self, key: str) -> int:
        """A number of the metadata."""
        text = self.metadata.get(key)
        if text is None:
            raise UserError(f"{self.path}: its metadata lack {key}, without which sherpa-onnx ends the process")
        if not text.isdecimal() or int(text) < 1:
            raise UserError(f"{self.path}: metadata {key}: {text!r} must be a number, at least 1")
        return int(text)


def _check_streaming(folder: OnnxFolder, graphs: dict[str, _Graph]) -> None:
    """Caches as the runtime makes them of the metadata, for one layer (online-zipformer2-ctc-model.cc)."""
    model = graphs["model"]
    numbers = {key: model.number(key) for key in STREAMING_NUMBERS}
    left, width = numbers["left_context_len"], numbers["encoder_dims"]
    heads, filters = numbers["num_heads"], numbers["cnn_module_kernels"] // 2
    key, value = (numbers[f"{kind}_head_dims"] * heads for kind in ("query", "value"))
    if numbers["num_encoder_layers"] != 1:
        raise UserError(f"{model.path}: metadata num_encoder_layers: {numbers['num_encoder_layers']}; needed: 1")
    sizes = [(left, None, key), (1, None, left, 3 * width // 4), *2 * [(left, None, value)]]
    sizes += [*2 * [(None, width, filters)], (None, 128, 3, 19), (None,)]
    for side, first, values in (("input", "x", model.inputs), ("output", "log_probs", model.outputs)):
        kinds = [(_FLOAT,)] * len(sizes[:-1]) + [(_INT64,)]
        caches = [(f"cache {i}", len(size), kind) for i, (size, kind) in enumerate(zip(sizes, kinds), 1)]
        model.check(side, values, [(first, 3, (_FLOAT,)), *caches])
        for value_info, size in zip(values[1:], sizes):
            shape = _shape(value_info)
            if any(one is not None and other not in (one, None) for one, other in zip(size, shape)):
                raise UserError(
                    f"{model.path}: {side} {value_info.name} has the shape {shape}; the metadata make it {size}"
                )
    _check_outputs(folder, model)


def _check_ctc(folder: OnnxFolder, graphs: dict[str, _Graph]) -> None:
    _check_encoder(graphs["model"], "log_probs")
    _check_outputs(folder, graphs["model"])


def _check_outputs(folder: OnnxFolder, model: _Graph) -> None:
    """The vocabulary of a CTC graph's first output, and its blank."""
    vocabulary = _shape(model.outputs[0])[-1]
    if vocabulary is None:
        raise UserError(f"{model.path}: output {model.outputs[0].name} must state its last dimension, the vocabulary")
    _check_vocabulary(folder, vocabulary, f"{model.path.name} has {vocabulary} outputs")
    if not any(token in BLANKS for token in folder.tokens):
        raise UserError(
            f"{folder.path / TOKENS}: no token is a blank by its name; sherpa-onnx needs one of {', '.join(BLANKS)}"
        )


def _check_transducer(folder: OnnxFolder, graphs: dict[str, _Graph]) -> None:
    encoder, decoder, joiner = graphs["encoder"], graphs["decoder"], graphs["joiner"]
    _check_encoder(encoder, "encoder_out")
    kind = encoder.metadata.get("model_type")
    if kind not in ENCODER_TYPES:
        raise UserError(f"{encoder.path}: metadata model_type: {kind!r}; allowed: {', '.join(ENCODER_TYPES)}")
    decoder.check("input", decoder.inputs, [("y", 2, (_INT64,))])
    decoder.check("output", decoder.outputs, [("decoder_out", 2, (_FLOAT,))])
    joiner.check("input", joiner.inputs, [("encoder_out", 2, (_FLOAT,)), ("decoder_out", 2, (_FLOAT,))])
    joiner.check("output", joiner.outputs, [("logit", 2, (_FLOAT,))])
    vocabulary, context = decoder.number("vocab_size"), decoder.number("context_size")
    _check_vocabulary(folder, vocabulary, f"{decoder.path.name}'s metadata say vocab_size: {vocabulary}")
    labels, outputs = _shape(decoder.inputs[0])[-1], _shape(joiner.outputs[0])[-1]
    if outputs is not None:
        _check_vocabulary(folder, outputs, f"{joiner.path.name} has {outputs} outputs")
    if labels is not None and labels != context:
        raise UserError(f"{decoder.path}: metadata context_size: {context}, but its input takes {labels} labels")
    for name, produced, taken in (("encoder", encoder.outputs[0], 0), ("decoder", decoder.outputs[0], 1)):
        sizes = _shape(produced)[-1], _shape(joiner.inputs[taken])[-1]
        if None not in sizes and sizes[0] != sizes[1]:
            raise UserError(f"{joiner.path}: takes {sizes[1]} values from the {name}, which makes {sizes[0]}")
    if folder.tokens[0] not in BLANKS:
        raise UserError(
            f"{folder.path / TOKENS}: id 0 is {folder.tokens[0]!r}; sherpa-onnx takes it for the blank of a transducer,"
            f" so it must be one of {', '.join(BLANKS)}"
        )


_CHECKS = {
    ZIPFORMER_CTC: _check_ctc,
    STREAMING_CTC: _check_streaming,
    TRANSDUCER: _check_transducer,
}


def _check_encoder(graph: _Graph, output: str) -> None:
    integers = (_INT32, _INT64)
    graph.check("input", graph.inputs, [("x", 3, (_FLOAT,)), ("x_lens", 1, integers)])
    graph.check("output", graph.outputs, [(output, 3, (_FLOAT,)), (f"{output}_lens", 1, integers)])


def _check_vocabulary(folder: OnnxFolder, size: int, what: str) -> None:
    if size != len(folder.tokens):
        raise UserError(f"{folder.path / TOKENS}: has {len(folder.tokens)} tokens, but {what}")


def _shape(value: Any) -> tuple[Any, ...]:
    """Dimensions of a graph's input or output; None where one is open."""
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)
