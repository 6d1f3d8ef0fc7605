"""sherpa-onnx as a runtime in this process. The model first runs in a subprocess, because sherpa-onnx may crash on it."""

from __future__ import annotations

import numpy as np

from espnet_todm.deploy.runtime.base import SHERPA, Runtime
from espnet_todm.deploy.runtime.fbank import check_samples, device_fbank
from espnet_todm.deploy.runtime.sherpa_subprocess import make_order, tried_recognizer
from espnet_todm.util.files import PathLike


class SherpaRuntime(Runtime):
    """The recognizer for an exported folder. A streaming one gets the model's tail of silence after each utterance.

    Raises:
        UserError: sherpa-onnx crashes on the folder's model, or is not installed.
    """

    kind = SHERPA

    def __init__(self, folder: PathLike, precision: str = "fp32", threads: int = 1) -> None:
        order = make_order(folder, precision, threads)
        self.mel_bins = order["arguments"]["feature_dim"]
        self._recognizer = tried_recognizer(order)

    def features(self, samples: np.ndarray) -> np.ndarray:
        return device_fbank(samples, self.mel_bins)

    def transcribe(self, samples: np.ndarray) -> str:
        check_samples(samples)
        return self._recognizer(samples)
