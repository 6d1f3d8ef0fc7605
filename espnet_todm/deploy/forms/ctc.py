"""CTC models for whole utterances: one graph for sherpa-onnx's ``OfflineRecognizer.from_zipformer_ctc``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np

from espnet_todm.deploy.forms.base import Form, Graph
from espnet_todm.deploy.forms.stock import Stock
from espnet_todm.deploy.onnx.folder import BLANKS, TOKENS
from espnet_todm.deploy.runtime.base import CtcRuntime
from espnet_todm.deploy.runtime.onnx import OnnxRuntime, Session
from espnet_todm.errors import UserError


class OnnxCtc(OnnxRuntime, CtcRuntime):
    """model.onnx: features -> log posteriors.

    Raises UserError when no token is a blank, or when the number of the graph's outputs is not that of the tokens.
    """

    shows_encoder = False

    def __init__(self, graphs: Mapping[str, Session], tokens: Sequence[str]) -> None:
        super().__init__(graphs, tokens)
        self.check_outputs(self._first)
        blanks = [i for i, token in enumerate(tokens) if token in BLANKS]
        if not blanks:
            place = self._first.path.parent / TOKENS
            raise UserError(f"{place}: no token is a blank by its name; sherpa-onnx needs one of {', '.join(BLANKS)}")
        self.blank = blanks[0]

    def posteriors(self, encoded: np.ndarray, path: Optional[Sequence[int]] = None) -> np.ndarray:
        return encoded


class CtcForm(Form):
    """For CTC models. Of a CTC/attention model, only encoder and CTC are exported."""

    name = "ctc"
    runtime = OnnxCtc
    stock = Stock("Offline", "from_zipformer_ctc", {"model": "zipformer_ctc.model"})

    def fits(self, model: Any) -> bool:
        return not model.use_transducer_decoder

    def graphs(self, model: Any, config: Mapping[str, Any], chunk: Optional[Sequence[int]]) -> list[Graph]:
        from espnet_todm.decode.text import forbidden_tokens
        from espnet_todm.deploy.onnx.graph import CtcGraph, encoder_graph, example_features, subsampling_factor

        if model.ctc is None:
            raise UserError("ctc_weight: 0 leaves no CTC output to export; allowed: above 0, or a transducer")
        if model.decoder is not None:
            logging.info("decoder: %s is left out: CTC alone is exported", type(model.decoder).__name__)
        encoder = encoder_graph(model, config)
        graph = Graph(
            "model",
            CtcGraph(encoder, model.ctc.ctc_lo, forbidden_tokens(model)).eval(),
            example_features(encoder.features),
            {"x": {0: "N", 1: "T"}, "x_lens": {0: "N"}},
            {"log_probs": {0: "N", 1: "T_out"}, "log_probs_len": {0: "N"}},
            {
                "model_type": "zipformer2_ctc",
                "vocab_size": model.vocab_size,
                "subsampling_factor": subsampling_factor(encoder.encoder),
            },
        )
        return [graph]


FORM = CtcForm()
