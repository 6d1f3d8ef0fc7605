"""Transducers for whole utterances: three graphs, as icefall's, for sherpa-onnx's ``OfflineRecognizer.from_transducer``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np

from espnet_todm.deploy.forms.base import Form, Graph
from espnet_todm.deploy.forms.stock import Stock
from espnet_todm.deploy.onnx.folder import BLANKS, TOKENS
from espnet_todm.deploy.runtime.base import TransducerRuntime
from espnet_todm.deploy.runtime.onnx import OnnxRuntime, Session
from espnet_todm.errors import UserError

STOCK_FIELDS = {part: f"transducer.{part}" for part in ("encoder", "decoder", "joiner")}


class OnnxTransducer(OnnxRuntime, TransducerRuntime):
    """encoder.onnx, decoder.onnx (on the last ``context_size`` labels) and joiner.onnx; the blank is token 0.

    Raises UserError when token 0 is not a blank, when the number of the joiner's outputs is not that of the tokens, and
    when the decoder's metadata lack ``context_size``.
    """

    def __init__(self, graphs: Mapping[str, Session], tokens: Sequence[str]) -> None:
        super().__init__(graphs, tokens)
        decoder = graphs["decoder"]
        try:
            self.context_size = int(decoder.metadata["context_size"])
        except (KeyError, ValueError):
            raise UserError(f"{decoder.path}: its metadata have no context_size, a number of labels") from None
        self.check_outputs(graphs["joiner"])
        self.check_vocabulary(decoder.metadata.get("vocab_size"), f"{decoder.path.name}'s metadata say vocab_size:")
        if tokens[0] not in BLANKS:
            raise UserError(
                f"{decoder.path.parent / TOKENS}: id 0 is {tokens[0]!r}; sherpa-onnx takes it for the blank of a"
                f" transducer, so it must be one of {', '.join(BLANKS)}"
            )

    def predict(self, label: int, state: Any = None) -> tuple[np.ndarray, Any]:
        """The state is the list of the last labels. It starts with -1 for missing labels, as in sherpa-onnx."""
        context = [*(state or [-1] * self.context_size), label][-self.context_size :]
        return self.graphs["decoder"](np.array([context]))[0], context

    def join(self, frame: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        return self.graphs["joiner"](frame[None], predicted)[0][0]


class TransducerForm(Form):
    """For transducers with a stateless predictor."""

    name = "transducer"
    parts = tuple(STOCK_FIELDS)
    runtime = OnnxTransducer
    stock = Stock("Offline", "from_transducer", STOCK_FIELDS, {"model_type": "transducer"})

    def fits(self, model: Any) -> bool:
        return bool(model.use_transducer_decoder)

    def graphs(self, model: Any, config: Mapping[str, Any], chunk: Optional[Sequence[int]]) -> list[Graph]:
        from espnet_todm.deploy.onnx.graph import encoder_graph, example_features, subsampling_factor
        from espnet_todm.deploy.onnx.transducer import ProjectedEncoder

        others, encoder = label_graphs(model), encoder_graph(model, config)
        about = {**others[0].metadata, "subsampling_factor": subsampling_factor(encoder.encoder)}
        first = Graph(
            self.parts[0],
            ProjectedEncoder(encoder, model.joint_network.lin_enc).eval(),
            example_features(encoder.features),
            {"x": {0: "N", 1: "T"}, "x_lens": {0: "N"}},
            {"encoder_out": {0: "N", 1: "T_out"}, "encoder_out_lens": {0: "N"}},
            {"model_type": "conformer", **about},
        )
        return [first, *others]


def label_graphs(model: Any) -> list[Graph]:
    """The graphs of a transducer's predictor and joiner. Raises UserError for a recurrent predictor."""
    import torch

    from espnet_todm.decode.text import forbidden_tokens
    from espnet_todm.decoders.stateless import StatelessDecoder
    from espnet_todm.deploy.onnx.transducer import Joiner, LastLabels

    decoder, joint = model.decoder, model.joint_network
    if not isinstance(decoder, StatelessDecoder):
        raise UserError(f"decoder: {type(decoder).__name__} is recurrent and has no export; use todm_stateless")
    about = {"vocab_size": model.vocab_size, "context_size": decoder.context_size}
    frame = torch.zeros(2, joint.lin_out.in_features)
    labels = torch.ones(2, decoder.context_size, dtype=torch.int64)
    predictor = LastLabels(decoder, joint.lin_dec).eval()
    return [
        Graph("decoder", predictor, (labels,), {"y": {0: "N"}}, {"decoder_out": {0: "N"}}, about),
        Graph(
            "joiner",
            Joiner(joint, forbidden_tokens(model)).eval(),
            (frame, frame),
            {"encoder_out": {0: "N"}, "decoder_out": {0: "N"}},
            {"logit": {0: "N"}},
            {"joiner_dim": frame.size(1)},
        ),
    ]


FORM = TransducerForm()
