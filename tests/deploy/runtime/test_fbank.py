"""What runtimes take as speech, and what they make of silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from espnet_todm.deploy.runtime.fbank import SILENCE, fbank
from espnet_todm.deploy.runtime.opening import open_runtime
from espnet_todm.errors import UserError
from tests.deploy.toy_onnx import write_toy_ctc

WRONG = [
    np.zeros((16000, 2), dtype=np.float32),  # stereo, as soundfile reads it
    np.zeros((1, 16000), dtype=np.float32),  # as torchaudio does
    np.zeros(16000, dtype=np.int16),  # much too loud as floats
]


def test_silence_has_the_same_energy_in_every_bin() -> None:
    """So frames of it can stand behind features; sherpa-onnx computes the same."""
    np.testing.assert_allclose(fbank(np.zeros(1600, dtype=np.float32)), np.full((10, 80), SILENCE), rtol=1e-6)


@pytest.mark.parametrize("samples", WRONG, ids=["stereo", "batch", "integers"])
def test_other_samples_are_refused_by_every_runtime(samples: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"speech: samples of shape .* needed: one channel of floats"):
        fbank(samples)
    for package in ("onnx", "onnxruntime", "sherpa_onnx"):
        pytest.importorskip(package)
    folder = write_toy_ctc(tmp_path)
    for kind in ("onnxruntime", "sherpa-onnx"):
        runtime = open_runtime(kind, folder)
        with pytest.raises(UserError, match="needed: one channel of floats") as caught:
            runtime.transcribe(samples)
        assert "\n" not in str(caught.value)
        assert runtime.transcribe(np.zeros(0, dtype=np.float32)) == ""
