"""The features that sherpa-onnx gives its models. It shows them to nobody, so a model is made that spells them out.

Encoded, each value is six hexadecimal digits, one in a frame, and sherpa-onnx reports the digits as tokens. Digits at odd
places have an alphabet of their own, so that neighbours always differ: greedy CTC search would merge what does not. There
are two such models, since sherpa-onnx computes other features for models of NeMo's form.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np

from espnet_todm.deploy.onnx.folder import TOKENS
from espnet_todm.util.optional import needed

DIGITS = 6
# A value is written as (value + OFFSET) * SCALE. Log energies lie within -16 and 32 or so; SCALE is the finest step that
# float32 holds up to 128.
OFFSET, SCALE = 64.0, float(2**17)
_HEAD = '<ir_version: 8, opset_import: ["" : 13]>\n'
_NUMBERS = """
<float offset = {{{offset}}}, float scale = {{{scale}}}, float low = {{0.0}}, float high = {{16777215.0}},
 int64[3] apart = {{0, -1, 1}}, int64[2] flat = {{0, -1}}, int64 base = {{16}}, int64 depth = {{33}},
 int64[6] places = {{1048576, 65536, 4096, 256, 16, 1}}, int64[6] alphabets = {{{alphabets}}},
 float[2] off_on = {{0.0, 1.0}}, int64 spelled = {{{spelled}}}>
"""
_SPELL = """
  above = Add(x, offset)
  scaled = Mul(above, scale)
  clipped = Clip(scaled, low, high)
  whole = Cast <to: int = 7> (clipped)
  values = Reshape(whole, apart)
  quotients = Div(values, places)
  digits = Mod(quotients, base)
  tokens = Add(digits, alphabets)
  row = Reshape(tokens, flat)
  spoken = OneHot <axis: int = -1> (row, depth, off_on)
"""
_CTC = (
    "speller (float[N, T, {bins}] x, int64[N] x_lens) => (float[N, S, 33] log_probs, int64[N] log_probs_len)"
    + _NUMBERS
    + "{{"
    + _SPELL
    + "  log_probs = Identity(spoken)\n  log_probs_len = Mul(x_lens, spelled)\n}}"
)
_ENCODER = (
    "encoder (float[N, {bins}, T] signal, int64[N] length) => (float[N, 33, S] outputs, int64[N] frames)"
    + _NUMBERS
    + "{{\n  x = Transpose <perm: ints = [0, 2, 1]> (signal)"
    + _SPELL
    + "  outputs = Transpose <perm: ints = [0, 2, 1]> (spoken)\n  frames = Mul(length, spelled)\n}}"
)
# A label makes its whole alphabet impossible, until one of the other alphabet is spoken.
_DECODER = """
decoder (int32[N, U] targets, int32[N] length, float[1, N, 1] first, float[1, N, 1] second)
  => (float[N, 33, U] outputs, int32[N] lengths, float[1, N, 1] first_after, float[1, N, 1] second_after)
{{
  rows = Gather(impossible, targets)
  outputs = Transpose <perm: ints = [0, 2, 1]> (rows)
  lengths = Identity(length)
  first_after = Identity(first)
  second_after = Identity(second)
}}
"""
_JOINER = """
joiner (float[N, 33, T] frames, float[N, 33, U] labels) => (float[N, T, U, 33] logits)
<int64[1] at_labels = {{2}}, int64[1] at_frames = {{1}}> {{
  by_frame = Transpose <perm: ints = [0, 2, 1]> (frames)
  by_label = Transpose <perm: ints = [0, 2, 1]> (labels)
  wide_frames = Unsqueeze(by_frame, at_labels)
  wide_labels = Unsqueeze(by_label, at_frames)
  possible = Sub(wide_frames, wide_labels)
  logits = Add(possible, blank)
}}
"""


def write_speller(folder: Path, mel_bins: int, nemo: bool = False) -> None:
    """Graphs and tokens.txt of the model that spells its features out, as a CTC model or as a transducer of NeMo's form."""
    names = ["<blk>", *(f"t{i}" for i in range(32))]
    if nemo:
        _write_transducer(folder, mel_bins)
        names = [*names[1:], names[0]]
    else:
        _write(folder / "model.onnx", _CTC, mel_bins, "1, 17, 1, 17, 1, 17")
    (folder / TOKENS).write_text("".join(f"{name} {i}\n" for i, name in enumerate(names)), encoding="utf-8")


def read_spelled(tokens: Sequence[str], mel_bins: int) -> np.ndarray:
    """Tokens that the model spoke -> features (T, mel_bins), float32."""
    digits = np.array([int(token[1:]) % 16 for token in tokens], dtype=np.int64).reshape(-1, DIGITS)
    whole = digits @ (16 ** np.arange(DIGITS - 1, -1, -1))
    return (whole / SCALE - OFFSET).astype(np.float32).reshape(-1, mel_bins)


def _write_transducer(folder: Path, mel_bins: int) -> None:
    impossible, blank = np.zeros((33, 33), dtype=np.float32), np.zeros(33, dtype=np.float32)
    impossible[:16, :16] = impossible[16:32, 16:32] = 2.0
    blank[32] = 0.5
    metadata = {
        "model_type": "EncDecRNNTBPEModel",
        "vocab_size": 32,
        "subsampling_factor": 1,
        "normalize_type": "NA",
        "pred_rnn_layers": 1,
        "pred_hidden": 1,
        "feat_dim": mel_bins,
    }
    _write(folder / "encoder.onnx", _ENCODER, mel_bins, "0, 16, 0, 16, 0, 16", metadata=metadata)
    _write(folder / "decoder.onnx", _DECODER, weights={"impossible": impossible})
    _write(folder / "joiner.onnx", _JOINER, weights={"blank": blank})


def _write(
    path: Path,
    text: str,
    mel_bins: int = 0,
    alphabets: str = "",
    weights: Optional[dict[str, np.ndarray]] = None,
    metadata: Optional[dict[str, Any]] = None,
) -> None:
    onnx, numpy_helper, parser = map(needed, ("onnx", "onnx.numpy_helper", "onnx.parser"))
    filled = text.format(bins=mel_bins, offset=OFFSET, scale=SCALE, spelled=mel_bins * DIGITS, alphabets=alphabets)
    model = parser.parse_model(_HEAD + filled)
    for name, value in (weights or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=str(value))
    onnx.save(model, str(path))
