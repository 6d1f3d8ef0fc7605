"""Greedy CTC decoding: fast, the same everywhere, and what on-device runtimes do by default."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from espnet.nets.pytorch_backend.transformer.subsampling import TooShortUttError
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.text.build_tokenizer import build_tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from espnet_todm.errors import UserError

Utterance = tuple[str, Tensor]


class GreedyDecoder:
    """Best path of a model's CTC output, as text.

    Raises UserError when the model has no CTC output.
    """

    def __init__(self, model: ESPnetASRModel, config: Mapping[str, Any]) -> None:
        if model.ctc is None:
            raise UserError("greedy decoding needs a CTC output, but ctc_weight is 0")
        self.model = model.eval()
        self.tokens = list(model.token_list)
        self.tokenizer = build_tokenizer(token_type=config["token_type"], bpemodel=config.get("bpemodel"))
        self.silent = {model.blank_id, model.sos, model.eos}

    @torch.no_grad()
    def __call__(self, batch: list[Tensor]) -> list[str]:
        """Inputs (T, F) or (samples,) -> texts. An utterance too short for one frame gives an empty text."""
        lengths = torch.tensor([len(utterance) for utterance in batch])
        try:
            encoded, frames = self.model.encode(pad_sequence(batch, batch_first=True), lengths)
        except TooShortUttError:
            return [""] * len(batch)
        best = self.model.ctc.argmax(encoded)
        return [self._text(path[:length]) for path, length in zip(best, frames)]

    def _text(self, path: Tensor) -> str:
        tokens = [self.tokens[i] for i in path.unique_consecutive().tolist() if i not in self.silent]
        return str(self.tokenizer.tokens2text(tokens)).strip()


def decode(decoder: GreedyDecoder, utterances: Iterable[Utterance], frames: int = 6000) -> Iterator[tuple[str, str]]:
    """(utterance, text), in batches of similar length and of at most ``frames`` padded frames or samples each."""
    batch: list[Utterance] = []
    for utterance in sorted(utterances, key=lambda item: len(item[1])):
        if batch and (len(batch) + 1) * len(utterance[1]) > frames:
            yield from _decode_batch(decoder, batch)
            batch = []
        batch.append(utterance)
    yield from _decode_batch(decoder, batch)


def _decode_batch(decoder: GreedyDecoder, batch: list[Utterance]) -> Iterator[tuple[str, str]]:
    if batch:
        yield from zip((name for name, _ in batch), decoder([x for _, x in batch]))
