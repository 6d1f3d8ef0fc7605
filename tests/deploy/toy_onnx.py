"""Folders as export writes them, with graphs of a few operators made by hand: no training, no export, no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

SYMBOLS = ["<blk>", "<unk>", "▁", *"ABCDEFG"]
MEL_BINS, JOINT, CONTEXT = 80, 12, 3

_HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
_CTC = """
{head} toy (float[N, T, {bins}] x, int64[N] x_lens) => (float[N, S, {tokens}] log_probs, int64[N] log_probs_len) {{
  logits = MatMul(x, weight)
  log_probs = LogSoftmax <axis: int = -1> (logits)
  log_probs_len = Identity(x_lens)
}}
"""
_ENCODER = """
{head} toy (float[N, T, {bins}] x, int64[N] x_lens) => (float[N, S, {joint}] encoder_out, int64[N] encoder_out_lens) {{
  encoder_out = MatMul(x, weight)
  encoder_out_lens = Identity(x_lens)
}}
"""
_DECODER = """
{head} toy (int64[N, {context}] y) => (float[N, {joint}] decoder_out)
<int64 zero = {{0}}, int64[1] labels = {{1}}> {{
  known = Max(y, zero)
  embedded = Gather(weight, known)
  weighted = Mul(embedded, places)
  decoder_out = ReduceSum <keepdims: int = 0> (weighted, labels)
}}
"""
_JOINER = """
{head} toy (float[N, {joint}] encoder_out, float[N, {joint}] decoder_out) => (float[N, {tokens}] logit) {{
  sum = Add(encoder_out, decoder_out)
  active = Tanh(sum)
  logit = MatMul(active, weight)
}}
"""
Change = Callable[[Any], None]


def write_toy_ctc(folder: Path, seed: int = 0, change: Optional[Change] = None) -> Path:
    """model.onnx: a linear map of each frame. ``change`` gets the ONNX model before it is written."""
    rng = np.random.default_rng(seed)
    _write(folder / "model.onnx", _CTC, {"weight": rng.normal(scale=0.1, size=(MEL_BINS, len(SYMBOLS)))}, {}, change)
    return _with_tokens(folder)


def write_toy_transducer(folder: Path, seed: int = 0, change: Optional[dict[str, Change]] = None) -> Path:
    """encoder.onnx, decoder.onnx and joiner.onnx; what the decoder says depends on every label that it is given."""
    rng, changes = np.random.default_rng(seed), change or {}
    embedding = rng.normal(scale=2.0, size=(len(SYMBOLS), JOINT))
    embedding[0] = 0  # the blank, and what is not there yet
    output = rng.normal(size=(JOINT, len(SYMBOLS)))
    output[:, 1] = 0  # <unk>, which sherpa-onnx takes for a blank, is never the likeliest: some logit is above 0
    places = 1.0 + np.arange(CONTEXT).reshape(1, CONTEXT, 1)
    weights = {
        "encoder": {"weight": rng.normal(scale=0.1, size=(MEL_BINS, JOINT))},
        "decoder": {"weight": embedding, "places": places},
        "joiner": {"weight": output},
    }
    metadata = {
        "encoder": {"model_type": "zipformer2"},
        "decoder": {"vocab_size": len(SYMBOLS), "context_size": CONTEXT},
        "joiner": {},
    }
    for part, text in (("encoder", _ENCODER), ("decoder", _DECODER), ("joiner", _JOINER)):
        _write(folder / f"{part}.onnx", text, weights[part], metadata[part], changes.get(part))
    return _with_tokens(folder)


def _write(path: Path, text: str, weights: dict[str, Any], metadata: dict[str, Any], change: Optional[Change]) -> None:
    from onnx import numpy_helper, parser, save

    model = parser.parse_model(
        text.format(head=_HEAD, bins=MEL_BINS, tokens=len(SYMBOLS), joint=JOINT, context=CONTEXT)
    )
    for name, value in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=str(value))
    if change is not None:
        change(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(model, str(path))


def _with_tokens(folder: Path) -> Path:
    (folder / "tokens.txt").write_text("".join(f"{s} {i}\n" for i, s in enumerate(SYMBOLS)), encoding="utf-8")
    return folder
