"""From an encoder's output to labels: the best path of CTC, or ESPnet's own search for transducers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.asr.transducer.beam_search_transducer import BeamSearchTransducer
from torch import Tensor

from espnet_todm.errors import UserError
from espnet_todm.optim.options import check_number

Search = Callable[[Tensor, Tensor], list[list[int]]]  # encoded (B, T, D), lengths (B,) -> labels of each utterance
GREEDY = "greedy"
TRANSDUCER_BEAM = ("default", "maes", "tsd", "alsd", "nsc")  # ESPnet's names


@dataclass(frozen=True)
class SearchOptions:
    """How to decode.

    Args:
        kind: "greedy", or one of ESPnet's beam searches for transducers: "default", "maes", "tsd", "alsd", "nsc".
        beam_size: hypotheses kept; greedy search keeps one.

    Raises:
        UserError: a value is not allowed.
    """

    kind: str = GREEDY
    beam_size: int = 5

    def __post_init__(self) -> None:
        if self.kind not in (GREEDY, *TRANSDUCER_BEAM):
            raise UserError(f"search: {self.kind!r} is unknown; allowed: {GREEDY}, {', '.join(TRANSDUCER_BEAM)}")
        check_number("beam_size", self.beam_size, at_least=1, whole=True)


def make_search(model: ESPnetASRModel, options: SearchOptions) -> Search:
    """The search for a model. Raises UserError when the model has not the outputs that it needs."""
    if model.use_transducer_decoder:
        return _transducer_search(model, options)
    if options.kind != GREEDY:
        raise UserError(f"search: {options.kind} is for transducers, but this model is none; allowed: {GREEDY}")
    if model.ctc is None:
        raise UserError("greedy decoding needs a CTC output, but ctc_weight is 0")

    def search(encoded: Tensor, lengths: Tensor) -> list[list[int]]:
        best = model.ctc.argmax(encoded)
        return [path[:length].unique_consecutive().tolist() for path, length in zip(best, lengths.tolist())]

    return search


def _transducer_search(model: ESPnetASRModel, options: SearchOptions) -> Search:
    beam_size = 1 if options.kind == GREEDY else options.beam_size
    kind = "default" if options.kind == GREEDY else options.kind
    if beam_size > model.vocab_size - 2:  # mAES adds two candidates of its own
        raise UserError(f"beam_size: {beam_size} is too large for {model.vocab_size} tokens")
    beam = BeamSearchTransducer(model.decoder, model.joint_network, beam_size, search_type=kind)

    def search(encoded: Tensor, lengths: Tensor) -> list[list[int]]:
        return [beam(row[:length])[0].yseq[1:] for row, length in zip(encoded, lengths.tolist())]

    return search
