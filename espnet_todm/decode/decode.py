"""Decode data sets into text, in batches of bounded length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Optional, TypeVar

import numpy as np
import torch
from espnet.nets.pytorch_backend.transformer.subsampling import TooShortUttError
from espnet2.asr.espnet_model import ESPnetASRModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from espnet_todm.decode.context import Context
from espnet_todm.decode.encoding import encode
from espnet_todm.decode.features import read_features, sampling_rate, seconds_of
from espnet_todm.decode.options import SEARCH, SearchOptions
from espnet_todm.decode.searches import Found, make_search
from espnet_todm.decode.text import Spelling, forbidden_tokens, only_text
from espnet_todm.encoders.supernet import SupernetEncoder
from espnet_todm.espnet.load import load_extracted
from espnet_todm.util.evenly import groups
from espnet_todm.util.files import write_json, write_table

Utterance = tuple[str, Tensor]
Result = TypeVar("Result")


class Decoder:
    """Transcribes batches with a model. The default is greedy search: it is fast, deterministic, and on-device runtimes
    do the same. As in these, ``<unk>`` is never written (:mod:`espnet_todm.decode.text`).

    Batched decoding gives the same transcripts as one utterance at a time. In ESPnet's own encoders, convolutions read
    padding, and output lengths count some of it. There, only utterances of equal length share a batch, so that there is
    no padding.

    Raises UserError if the search does not fit the model.
    """

    def __init__(
        self, model: ESPnetASRModel, config: Mapping[str, Any], search: Optional[SearchOptions] = None
    ) -> None:
        self.model = model.eval()
        self.search = make_search(model, search or SearchOptions())
        self.tokens = list(model.token_list)
        self.forbidden = forbidden_tokens(model)
        self.silent = {model.blank_id, *self.forbidden}
        self.spelling = Spelling(config)

    @torch.no_grad()
    def __call__(self, batch: list[Tensor]) -> list[str]:
        """Inputs (T, F) or (samples,) -> texts. An utterance too short for one frame gives an empty text."""
        texts = [""] * len(batch)
        for places, encoded, frames in self._encode(batch):
            for place, found in zip(places, self.search(encoded, frames)):
                texts[place] = self.text(found)
        return texts

    @torch.no_grad()
    def log_posteriors(self, batch: list[Tensor]) -> list[np.ndarray]:
        """Inputs as above -> CTC's log posteriors (T, V), float32; T is 0 for an utterance too short for one frame."""
        posteriors = [np.zeros((0, len(self.tokens)), dtype=np.float32)] * len(batch)
        for places, encoded, frames in self._encode(batch):
            logits = only_text(self.model.ctc.ctc_lo(encoded), self.forbidden)
            rows = logits.log_softmax(dim=-1).float().cpu().numpy()
            for place, row, length in zip(places, rows, frames.tolist()):
                posteriors[place] = row[:length].copy()
        return posteriors

    def _encode(self, batch: list[Tensor]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Indices in the batch, their encoder output (B, T, D) and lengths (B,), without utterances that are too short."""
        for places in self._together(batch):
            lengths = torch.tensor([len(batch[place]) for place in places])
            try:
                padded = pad_sequence([batch[place] for place in places], batch_first=True)
                encoded, frames = encode(self.model, padded, lengths)
            except TooShortUttError:
                continue
            yield places, encoded, frames

    def _together(self, batch: list[Tensor]) -> list[list[int]]:
        """Indices of utterances that may be padded to one length, without empty ones, on which ESPnet fails."""
        some = [place for place, utterance in enumerate(batch) if len(utterance)]
        if isinstance(self.model.encoder, SupernetEncoder):
            return [some] if some else []
        by_length: dict[int, list[int]] = {}
        for place in some:
            by_length.setdefault(len(batch[place]), []).append(place)
        return list(by_length.values())

    def text(self, found: Found) -> str:
        """The text of what a search finds: token numbers, or from phonemes the words."""
        if isinstance(found, str):
            return found
        return self.spelling.text([self.tokens[i] for i in found if i not in self.silent])


@dataclass(frozen=True)
class Work:
    """One job: the folder of a model, and per set the table of its input and the file for its text.

    context: None for the model's own. ``search.json`` beside each text stores the search options and the context.
    """

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    batch_seconds: float
    search: SearchOptions = field(default_factory=SearchOptions)
    context: Optional[Context] = None


def decode_sets(work: Work) -> None:
    """Decode every set with one model; each text file (utterance and words per line) is complete or absent."""
    model, config = load_extracted(work.model)
    told = asdict(work.search)
    if work.context is not None:
        work.context.apply(model)
        told["chunk"] = work.context.name
    decoder, rate = Decoder(model, config, work.search), sampling_rate(config)
    for name, scp in work.inputs.items():
        write_table(work.outputs[name], dict(decode(decoder, read_features(scp, rate=rate), work.batch_seconds)))
        write_json(Path(work.outputs[name]).parent / SEARCH, told)


def decode(
    decoder: Callable[[list[Tensor]], list[Result]], utterances: Iterable[Utterance], batch_seconds: float = 60
) -> Iterator[tuple[str, Result]]:
    """(utterance, text) of inputs (T, F) or (samples,), in batches of similar length and bounded padded length.

    decoder: a Decoder, or another function of a batch.
    """
    for batch in batches(utterances, batch_seconds):
        yield from zip((name for name, _ in batch), decoder([x for _, x in batch]))


def batches(utterances: Iterable[Utterance], batch_seconds: float) -> Iterator[list[Utterance]]:
    """Groups of utterances of similar length, up to a total padded length; a longer utterance is a batch of its own."""
    for group in groups(utterances, 500):  # so that sorting by length does not need the whole set in memory
        batch: list[Utterance] = []
        for utterance in sorted(group, key=lambda item: len(item[1])):
            if batch and (len(batch) + 1) * seconds_of(utterance[1]) > batch_seconds:
                yield batch
                batch = []
            batch.append(utterance)
        yield batch
