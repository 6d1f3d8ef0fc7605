"""sherpa-onnx itself as a runtime, in this process, once it has shown in another that it survives the model."""

from __future__ import annotations

import numpy as np

from espnet_todm.deploy.runtime.base import SHERPA, Runtime
from espnet_todm.deploy.runtime.fbank import check_samples, device_fbank
from espnet_todm.deploy.runtime.sherpa_check import check_for_sherpa
from espnet_todm.deploy.runtime.sherpa_subprocess import Recognizer, make_order, transcribe_in_subprocess
from espnet_todm.util.acoustics import SAMPLING_RATE
from espnet_todm.util.files import PathLike


class SherpaRuntime(Runtime):
    """``sherpa_onnx.OfflineRecognizer`` on an exported folder: ``from_zipformer_ctc`` or ``from_transducer``; on a streaming
    one ``OnlineRecognizer.from_zipformer2_ctc``, which gets the model's tail of silence behind each utterance.

    Args:
        tried: the folder was in a sherpa-onnx before; else it is tried in a process of its own first.

    Raises:
        UserError: the folder has a fault that sherpa-onnx does not survive, or it is not installed.
    """

    kind = SHERPA

    def __init__(self, folder: PathLike, precision: str = "fp32", threads: int = 1, tried: bool = False) -> None:
        self._kind = check_for_sherpa(folder, precision)
        self.mel_bins = self._kind.mel_bins
        if not tried:
            noise = np.random.default_rng(0).normal(scale=1e-3, size=SAMPLING_RATE).astype(np.float32)
            transcribe_in_subprocess(folder, precision, threads, [noise])
        self._recognizer = Recognizer(**make_order(folder, precision, threads, self._kind))

    def features(self, samples: np.ndarray) -> np.ndarray:
        return device_fbank(samples, self.mel_bins)

    def transcribe(self, samples: np.ndarray) -> str:
        check_samples(samples)
        return " ".join(str(self._recognizer(samples).text).split())
