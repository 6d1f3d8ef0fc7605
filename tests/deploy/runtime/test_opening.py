"""What cannot be opened is refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from espnet_todm.deploy.forms.registry import open_onnx
from espnet_todm.deploy.runtime.base import RUNTIMES
from espnet_todm.deploy.runtime.opening import open_runtime
from espnet_todm.errors import UserError
from tests.deploy.toy_onnx import write_toy_ctc


def test_faults_are_told_in_words(tmp_path: Path) -> None:
    cases: list[tuple[tuple[Any, ...], str]] = [
        (("tensorflow", tmp_path), "'tensorflow' is unknown; allowed: torch, onnxruntime, sherpa-onnx"),
        (("torch", tmp_path, "int8"), "'int8' is not for torch"),
        (("torch", tmp_path, "fp32", 0), "threads: 0"),
    ]
    for arguments, words in cases:
        with pytest.raises(UserError, match=words):
            open_runtime(*arguments)
    for package in ("onnx", "onnxruntime", "sherpa_onnx"):
        pytest.importorskip(package)
    folder = write_toy_ctc(tmp_path / "toy")
    for kind in RUNTIMES[1:]:
        with pytest.raises(UserError, match="no such folder"):
            open_runtime(kind, tmp_path / "nowhere")
        with pytest.raises(UserError, match=r"model.int8.onnx: no such file; the folder has precision: fp32"):
            open_runtime(kind, folder, "int8")
        with pytest.raises(UserError, match="precision: 'int4' is unknown"):
            open_runtime(kind, folder, "int4")
    with pytest.raises(UserError, match="does not run on x") as caught:
        open_onnx(folder).encode(np.zeros((3, 79), dtype=np.float32))
    assert "\n" not in str(caught.value)
