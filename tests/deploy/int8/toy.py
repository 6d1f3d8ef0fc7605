"""An exported CTC model by hand, with a layer norm and three linear layers, that int8 damages where a test wants it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from espnet_todm.deploy.forms.registry import open_onnx
from espnet_todm.deploy.parity.speech import Speech
from espnet_todm.deploy.runtime.fbank import fbank
from tests.deploy.toy_onnx import MEL_BINS, SYMBOLS
from tests.tiny_corpus import RATE

WIDE, MIDDLE = 128, 24
OUTLIER = 1024.0  # how much larger the values of the outlier channel are
GRAPH = f"""
<ir_version: 8, opset_import: ["" : 17]>
toy (float[N, T, {MEL_BINS}] x, int64[N] x_lens) => (float[N, S, {len(SYMBOLS)}] log_probs, int64[N] log_probs_len) {{
  norm = LayerNormalization <axis: int = -1> (x, scale, shift)
  wide = MatMul(norm, first)
  wide_scaled = Mul(wide, wide_gain)
  wide_active = Relu(wide_scaled)
  middle = MatMul(wide_active, second)
  middle_scaled = Mul(middle, middle_gain)
  middle_active = Relu(middle_scaled)
  products = MatMul(middle_active, third)
  logits = Add(products, bias)
  log_probs = LogSoftmax <axis: int = -1> (logits)
  log_probs_len = Identity(x_lens)
}}
"""
GAINS = {"norm": ["scale", "shift"], "wide_active": ["wide_gain"], "middle_active": ["middle_gain"]}
WEIGHTS = {"norm": "first", "wide_active": "second", "middle_active": "third"}


def write_model(folder: Path, outliers: str = "") -> Path:
    """model.onnx and tokens.txt. outliers: the tensor, a key of WEIGHTS, whose channel 3 is OUTLIER times as large, and the
    weight behind it as much smaller. So the float32 model computes the same for all of them."""
    from onnx import numpy_helper, parser, save

    rng = np.random.default_rng(0)
    values = {
        "scale": 1 + 0.1 * rng.normal(size=MEL_BINS),
        "shift": 0.1 * rng.normal(size=MEL_BINS),
        "first": rng.normal(size=(MEL_BINS, WIDE)) / 9,
        "wide_gain": np.ones(WIDE),
        "second": rng.normal(size=(WIDE, MIDDLE)) / 8,
        "middle_gain": np.ones(MIDDLE),
        "third": rng.normal(size=(MIDDLE, len(SYMBOLS))) * 8,
    }
    values["bias"] = _even_bias(values)
    for name in GAINS.get(outliers, []):
        values[name][3] *= OUTLIER
    if outliers:
        values[WEIGHTS[outliers]][3] /= OUTLIER
    model = parser.parse_model(GRAPH)
    for name, value in values.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    folder.mkdir(parents=True, exist_ok=True)
    save(model, str(folder / "model.onnx"))
    (folder / "tokens.txt").write_text("".join(f"{s} {i}\n" for i, s in enumerate(SYMBOLS)), encoding="utf-8")
    return folder


def _even_bias(values: Mapping[str, np.ndarray]) -> np.ndarray:
    """The bias (V,) with which all tokens have the same mean logit on speech, except for <unk>, which is never output."""
    x = fbank(tones(0), MEL_BINS)
    norm = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True) * values["scale"] + values["shift"]
    middle = np.maximum(np.maximum(norm @ values["first"], 0) @ values["second"], 0)
    bias = -(middle @ values["third"]).mean(0)
    bias[1] = -1e4
    return bias


def tones(seed: int, count: int = 40) -> np.ndarray:
    """Tones of 0.05 s each in noise, (N,) float32: frames that differ from each other."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(0.05 * RATE)) / RATE
    waves = [np.sin(2 * np.pi * frequency * time) for frequency in rng.uniform(100, 7000, size=count)]
    return (0.2 * np.concatenate(waves) + 0.02 * rng.normal(size=count * len(time))).astype(np.float32)


def speech_of(folder: Path) -> list[Speech]:
    """Tones; what the float32 model hears in them is what is said."""
    runtime = open_onnx(folder)
    return [Speech(f"utt{i}", tones(i), runtime.transcribe(tones(i))) for i in range(4)]
