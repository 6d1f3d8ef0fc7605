"""The features that sherpa-onnx gives its models. It shows them to nobody, so a model is made that spells them out.

That model's log probabilities are one-hot: frame by frame it says each value's six hexadecimal digits, and sherpa-onnx
reports them as tokens. Digits at odd places have tokens of their own, so that greedy CTC search merges none.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from espnet_todm.deploy.onnx_folder import TOKENS

DIGITS = 6
# A value is written as (value + OFFSET) * SCALE. Log energies lie within -16 and 32 or so; SCALE is the finest step that
# float32 holds up to 128.
OFFSET, SCALE = 64.0, float(2**17)
_TEXT = """
<ir_version: 8, opset_import: ["" : 13]>
speller (float[N, T, {mel_bins}] x, int64[N] x_lens) => (float[N, S, 33] log_probs, int64[N] log_probs_len)
<float offset = {{{offset}}}, float scale = {{{scale}}}, float low = {{0.0}}, float high = {{16777215.0}},
 int64[3] apart = {{0, -1, 1}}, int64[2] flat = {{0, -1}}, int64 base = {{16}}, int64 depth = {{33}},
 int64[6] places = {{1048576, 65536, 4096, 256, 16, 1}}, int64[6] alphabets = {{1, 17, 1, 17, 1, 17}},
 float[2] off_on = {{0.0, 1.0}}, int64 spelled = {{{spelled}}}>
{{
  above = Add(x, offset)
  scaled = Mul(above, scale)
  clipped = Clip(scaled, low, high)
  whole = Cast <to: int = 7> (clipped)
  values = Reshape(whole, apart)
  quotients = Div(values, places)
  digits = Mod(quotients, base)
  tokens = Add(digits, alphabets)
  row = Reshape(tokens, flat)
  log_probs = OneHot <axis: int = -1> (row, depth, off_on)
  log_probs_len = Mul(x_lens, spelled)
}}
"""


def write_speller(folder: Path, mel_bins: int) -> None:
    """model.onnx and tokens.txt of the model that spells its features out, as sherpa-onnx's zipformer_ctc takes it."""
    import onnx
    from onnx import parser

    text = _TEXT.format(mel_bins=mel_bins, offset=OFFSET, scale=SCALE, spelled=mel_bins * DIGITS)
    onnx.save(parser.parse_model(text), str(folder / "model.onnx"))
    (folder / TOKENS).write_text("<blk> 0\n" + "".join(f"t{i} {i}\n" for i in range(1, 33)), encoding="utf-8")


def read_spelled(tokens: Sequence[str], mel_bins: int) -> np.ndarray[Any, Any]:
    """Tokens that the model spoke -> features (T, mel_bins), float32."""
    digits = np.array([(int(token[1:]) - 1) % 16 for token in tokens], dtype=np.int64).reshape(-1, DIGITS)
    whole = digits @ (16 ** np.arange(DIGITS - 1, -1, -1))
    return (whole / SCALE - OFFSET).astype(np.float32).reshape(-1, mel_bins)
