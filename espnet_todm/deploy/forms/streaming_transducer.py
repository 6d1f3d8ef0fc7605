"""Streaming transducers: three graphs, as icefall's, for sherpa-onnx's ``OnlineRecognizer.from_transducer``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np

from espnet_todm.deploy.forms.base import Graph
from espnet_todm.deploy.forms.stock import Stock
from espnet_todm.deploy.forms.streaming import ChunkedOnnx, ChunkSearch, StreamingForm
from espnet_todm.deploy.forms.transducer import STOCK_FIELDS, OnnxTransducer, TransducerForm, label_graphs


class StreamingTransducerOnnx(ChunkedOnnx, OnnxTransducer):
    """encoder.onnx of a streaming export (features of a chunk, caches -> encoder output, new caches), decoder.onnx and
    joiner.onnx."""

    def best(self) -> ChunkSearch:
        """At most one label for each frame; the predictor goes on from chunk to chunk."""
        predicted, state = self.predict(self.blank)

        def search(encoded: np.ndarray) -> Sequence[int]:
            nonlocal predicted, state
            path = []
            for frame in encoded:
                path.append(int(self.join(frame, predicted).argmax()))
                if path[-1] != self.blank:
                    predicted, state = self.predict(path[-1], state)
            return path

        return search


class StreamingTransducerForm(StreamingForm):
    """For transducers with a stateless predictor whose encoder can run in chunks."""

    name = "streaming_transducer"
    parts = TransducerForm.parts
    runtime = StreamingTransducerOnnx
    stock = Stock("Online", "from_transducer", STOCK_FIELDS)

    def fits(self, model: Any) -> bool:
        return bool(model.use_transducer_decoder)

    def graphs(self, model: Any, config: Mapping[str, Any], chunk: Optional[Sequence[int]]) -> list[Graph]:
        from espnet_todm.deploy.onnx.streaming import streaming_transducer

        others = label_graphs(model)
        return [self.chunk_graph(streaming_transducer(model, chunk), "encoder_out", others[0].metadata), *others]


FORM = StreamingTransducerForm()
