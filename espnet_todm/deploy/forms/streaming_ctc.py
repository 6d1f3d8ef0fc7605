"""Streaming CTC models: one graph for sherpa-onnx's ``OnlineRecognizer.from_zipformer2_ctc``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np

from espnet_todm.deploy.forms.base import Graph
from espnet_todm.deploy.forms.ctc import OnnxCtc
from espnet_todm.deploy.forms.stock import Stock
from espnet_todm.deploy.forms.streaming import ChunkedOnnx, ChunkSearch, StreamingForm


class StreamingOnnx(ChunkedOnnx, OnnxCtc):
    """model.onnx of a streaming export: features of a chunk, caches -> log posteriors, new caches."""

    def best(self) -> ChunkSearch:
        """The best label of each frame."""

        def search(posteriors: np.ndarray) -> Sequence[int]:
            labels: list[int] = posteriors.argmax(-1).tolist()
            return labels

        return search


class StreamingCtcForm(StreamingForm):
    """For CTC models whose encoder can run in chunks."""

    name = "streaming_ctc"
    runtime = StreamingOnnx
    stock = Stock("Online", "from_zipformer2_ctc", {"model": "zipformer2_ctc.model"})

    def fits(self, model: Any) -> bool:
        return not model.use_transducer_decoder

    def graphs(self, model: Any, config: Mapping[str, Any], chunk: Optional[Sequence[int]]) -> list[Graph]:
        from espnet_todm.deploy.onnx.streaming import streaming_ctc

        return [self.chunk_graph(streaming_ctc(model, chunk), "log_probs", {"vocab_size": model.vocab_size})]


FORM = StreamingCtcForm()
