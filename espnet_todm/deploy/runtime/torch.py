"""PyTorch as a runtime: an extracted model, or a supernet that runs one of its subnets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, Optional

import numpy as np
import torch
from espnet.nets.pytorch_backend.transformer.subsampling import TooShortUttError
from espnet2.asr.espnet_model import ESPnetASRModel
from torch import Tensor

from espnet_todm.decode.decode import Decoder
from espnet_todm.decode.encoding import encode
from espnet_todm.decode.text import forbidden_tokens, only_text
from espnet_todm.decoders.stateless import StatelessDecoder
from espnet_todm.deploy.extract import load_supernet
from espnet_todm.deploy.runtime.base import (
    RECURRENT_SYMBOLS,
    STATELESS_SYMBOLS,
    TORCH,
    CtcRuntime,
    StepRuntime,
    TransducerRuntime,
)
from espnet_todm.errors import UserError
from espnet_todm.espnet.load import load_extracted
from espnet_todm.models.kaldi_fbank import on_features
from espnet_todm.util.acoustics import FRONTEND
from espnet_todm.util.files import PathLike
from espnet_todm.util.threads import torch_threads


class TorchRuntime(StepRuntime):
    """Base class for CTC models and transducers. Raises UserError when the model has a frontend."""

    kind = TORCH

    def __init__(self, model: ESPnetASRModel, config: Mapping[str, Any], threads: int = 1) -> None:
        if model.frontend is not None:
            name = type(model.frontend).__name__
            raise UserError(f"frontend: {name}: runtimes take Kaldi's features; train with frontend: {FRONTEND}")
        self.model = model.eval()
        self.threads = threads
        self.mel_bins = int(config["input_size"])
        self.tokens = list(model.token_list)
        self.blank = int(model.blank_id)
        self.no_text = forbidden_tokens(model)
        self._decoder = Decoder(model, config)

    def spell(self, labels: Sequence[int]) -> str:
        return " ".join(self._decoder.text(labels).split())

    def _encoded(self, features: np.ndarray) -> Tensor:
        """Features (T, F) -> (T', D), or (0, D) if they are too short for one frame."""
        speech = torch.tensor(features).unsqueeze(0)  # a copy: GlobalMVN works in place
        if speech.size(1):  # ESPnet fails on empty input before its check of the length
            with suppress(TooShortUttError):
                return encode(self.model, speech, torch.tensor([speech.size(1)]))[0][0]
        return torch.zeros(0, (self.model.postencoder or self.model.encoder).output_size())


class TorchCtc(TorchRuntime, CtcRuntime):
    """Encoder and output layer of CTC."""

    @torch.no_grad()
    def encode(self, features: np.ndarray) -> np.ndarray:
        with torch_threads(self.threads):
            return self._encoded(features).numpy()

    @torch.no_grad()
    def posteriors(self, encoded: np.ndarray, path: Optional[Sequence[int]] = None) -> np.ndarray:
        with torch_threads(self.threads):
            logits = only_text(self.model.ctc.ctc_lo(torch.from_numpy(encoded)), self.no_text)
            return logits.log_softmax(dim=-1).numpy()


class TorchTransducer(TorchRuntime, TransducerRuntime):
    """ESPnet's predictor and joiner. The joiner's two projections run once per frame and once per label."""

    def __init__(self, model: ESPnetASRModel, config: Mapping[str, Any], threads: int = 1) -> None:
        super().__init__(model, config, threads)
        stateless = isinstance(model.decoder, StatelessDecoder)
        self.max_symbols = STATELESS_SYMBOLS if stateless else RECURRENT_SYMBOLS

    @torch.no_grad()
    def encode(self, features: np.ndarray) -> np.ndarray:
        with torch_threads(self.threads):
            return self.model.joint_network.lin_enc(self._encoded(features)).numpy()

    @torch.no_grad()
    def predict(self, label: int, state: Any = None) -> tuple[Tensor, Any]:
        """The state is a pair of the labels so far and the predictor's state; ESPnet's ``score`` needs both."""
        decoder = self.model.decoder
        labels, carried = state or ([], decoder.init_state(1))
        labels = [*labels, label]
        with torch_threads(self.threads):
            output, carried, _ = decoder.score(SimpleNamespace(yseq=labels, dec_state=carried), {})
            return self.model.joint_network.lin_dec(output), (labels, carried)

    @torch.no_grad()
    def join(self, frame: np.ndarray, predicted: Tensor) -> np.ndarray:
        with torch_threads(self.threads):
            logits = self.model.joint_network(torch.from_numpy(frame), predicted, no_projection=True)
            return only_text(logits, self.no_text).numpy()


def open_torch(folder: PathLike, threads: int = 1) -> TorchRuntime:
    """Load the model of an extracted subnet's folder."""
    return torch_runtime(*on_features(*load_extracted(folder)), threads)


def load_slice(config: PathLike, checkpoint: PathLike, subnet: str) -> tuple[ESPnetASRModel, Mapping[str, Any]]:
    """Load a supernet that runs one subnet, and its config. ``subnet``: name of a size or card file.

    Raises UserError when the supernet has no such subnet.
    """
    supernet = load_supernet(config, checkpoint)
    model, encoder = supernet.model, supernet.encoder
    model.load_state_dict({**model.state_dict(), **model.outer_state(encoder.select(subnet))})
    return on_features(model, supernet.config)


def torch_runtime(model: ESPnetASRModel, config: Mapping[str, Any], threads: int = 1) -> TorchRuntime:
    """The runtime for a CTC model or a transducer. Raises UserError for a model with only an attention decoder."""
    if model.use_transducer_decoder:
        return TorchTransducer(model, config, threads)
    if model.ctc is None:
        raise UserError("ctc_weight: 0 leaves only an attention decoder; runtimes here are for CTC and transducers")
    return TorchCtc(model, config, threads)
