"""Score subnets of a trained supernet on one set. Subnets are not extracted, since they share the supernet's weights.

Normalisation and subsampling are the same for all subnets. They run once, and the subsampled features stay in memory.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Optional, cast

import torch
from espnet2.text.token_id_converter import TokenIDConverter
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from espnet_todm.components import FULL, Key, Subnet
from espnet_todm.decode.decode import Decoder, Utterance, batches
from espnet_todm.decode.searches import best_paths
from espnet_todm.decode.text import TextJoint, only_text
from espnet_todm.deploy.extract import Supernet, calibration_fronts
from espnet_todm.encoders.calibration import calibrate, needs_calibration
from espnet_todm.encoders.passes import SubsampledFeatures
from espnet_todm.errors import UserError
from espnet_todm.models.batch import OUTSIDE, Batch
from espnet_todm.models.tasks import after_encoder
from espnet_todm.scoring.scores import Score, score_tables
from espnet_todm.util.checks import check_choice

SCORES = ("wer", "cer", "loss")
_UNITS = {"wer": "words", "cer": "characters"}


class _Prepared(NamedTuple):
    """The subsampled features of a batch, and its transcripts as labels."""

    names: tuple[str, ...]
    subsampled: SubsampledFeatures
    batch: Batch


class Evaluator:
    """Scores subnets on a set, in float32 and with greedy search, as for extracted models.

    Args:
        supernet: the trained supernet.
        utterances: names and inputs, (T, F) or (samples,).
        references: transcripts, words separated by spaces. Utterances without a transcript are left out.
        split: name of the set.
        calibration: feature tensors (T, F) for estimating a subnet's batch norm statistics. Needed if the convolutions
            have batch norm, unless only named sizes are scored.

    Raises:
        UserError: no utterance has a transcript, or calibration is needed and not given.
    """

    def __init__(
        self,
        supernet: Supernet,
        utterances: Iterable[Utterance],
        references: Mapping[str, str],
        split: str = "",
        batch_seconds: float = 60.0,
        calibration: Optional[Iterable[Tensor]] = None,
    ) -> None:
        self.supernet, self.model, self.split = supernet, supernet.model, split
        self.decoder = Decoder(supernet.model, supernet.config)
        self.references: dict[str, str] = {}
        self._batches: list[_Prepared] = []
        known = (utterance for utterance in utterances if utterance[0] in references)
        for group in batches(known, batch_seconds):
            self.references.update((name, references[name]) for name, _ in group)
            self._batches += self._prepare(group)
        if not self._batches:
            raise UserError(f"set {split}: no utterance is long enough for a frame and has a transcript")
        if not any(part.batch.text_lengths.any() for part in self._batches):
            raise UserError(f"set {split}: no transcript has a word, so there is nothing to score")
        with torch.no_grad():
            given = calibration or ()
            self._calibration = [*calibration_fronts(self.model, supernet.encoder, given)] if given else []

    @property
    def utterances(self) -> tuple[str, ...]:
        """Names of the scored utterances."""
        return tuple(self.references)

    def scores(self, subnet: Subnet, score: str) -> dict[str, float]:
        """The score ``score`` and those computed with it: WER and CER in percent, or the loss in nats per token.

        Raises UserError for an unknown score.
        """
        check_choice("score", score, SCORES)
        if score == "loss":
            return {"loss": self.loss(subnet)}
        counted = self.errors(subnet)
        return {name: counted.total(unit).error_rate for name, unit in _UNITS.items()}

    def errors(self, subnet: Subnet) -> Score:
        """Word and character errors of each utterance."""
        return score_tables(self.references, self.transcribe(subnet), self.split, subnet.name)

    @torch.no_grad()
    def transcribe(self, subnet: Subnet) -> dict[str, str]:
        """Transcripts of a subnet by utterance name. An utterance that is too short for one frame gives an empty text."""
        texts = dict.fromkeys(self.references, "")
        named = self.named(subnet)
        for part, encoded in self._encode(named):
            encoded, subsampled = after_encoder(self.model, encoded, part.subsampled, OUTSIDE)
            found = self._labels(encoded, subsampled.lengths, named.name)
            texts.update(zip(part.names, map(self.decoder.text, found)))
        return texts

    @torch.no_grad()
    def loss(self, subnet: Subnet) -> float:
        """The task loss of the training (CTC, attention, transducer, with their weights), in nats per reference token.

        It excludes the loss of intermediate CTC, which does not depend on the subnet's final output. A loss that is not
        finite gives infinity.
        """
        total, tokens, named = 0.0, 0, self.named(subnet)
        for part, encoded in self._encode(named):
            output = self.model.task(encoded, part.subsampled, part.batch, named.name)
            total += float(output.loss) * len(part.names)
            tokens += int(part.batch.text_lengths.sum())
        return total / tokens if math.isfinite(total) else math.inf

    def named(self, subnet: Subnet) -> Subnet:
        """The named size with the same components, with its own output layer and statistics, or the subnet itself."""
        sizes = {size.components: size for size in self.supernet.encoder.sizes.values()}
        return sizes.get(subnet.components, subnet)

    def _encode(self, subnet: Subnet) -> Iterator[tuple[_Prepared, Tensor]]:
        """Yield the batches, each with the subnet's output (B, T, D)."""
        encoder, chosen = self.supernet.encoder, subnet
        if needs_calibration(encoder, subnet):
            if not self._calibration:
                raise UserError("batch norm needs data to be recalibrated on for each subnet; give --calibrate SCP")
            encoder = encoder.extract(subnet)
            calibrate(encoder, self._calibration, partial(self.model.between, FULL))
            chosen = encoder.subnet
        for part in self._batches:
            yield part, encoder.blocks(part.subsampled, chosen, between=self.model.between(subnet.name))

    def _labels(self, encoded: Tensor, lengths: Tensor, size: str) -> Sequence[Sequence[int]]:
        if self.model.use_transducer_decoder:
            task = self.model.transducer(size)
            joint = cast(Any, TextJoint(task.joint, self.decoder.forbidden))
            return replace(task, joint=joint).greedy(encoded, lengths)
        logits = only_text(self.model.output_layer(size)(encoded), self.decoder.forbidden)
        return best_paths(logits.argmax(-1), lengths)

    @torch.no_grad()
    def _prepare(self, group: Sequence[Utterance]) -> list[_Prepared]:
        """Run subsampling on a batch. Returns an empty list if all its utterances are too short."""
        names = tuple(name for name, _ in group)
        converter = TokenIDConverter(self.decoder.tokens)
        text = [
            torch.tensor(converter.tokens2ids(self.decoder.spelling.tokens(self.references[name])), dtype=torch.long)
            for name in names
        ]
        batch = Batch(
            pad_sequence([x for _, x in group], batch_first=True),
            torch.tensor([len(x) for _, x in group]),
            pad_sequence(text, batch_first=True, padding_value=-1),
            torch.tensor([len(labels) for labels in text]),
            OUTSIDE,
        )
        subsampled = self.model.run_subsampling(batch)
        if not subsampled.lengths.any():
            logging.warning("%s: %d utterances are too short for a frame", self.split or "the set", len(names))
            return []
        unused = batch.speech.new_empty(0)  # the features are not needed again
        return [_Prepared(names, subsampled, replace(batch, speech=unused))]


class Cached:
    """A cache of scores: ``evaluate`` runs once for each set of components, whatever the names of the subnets are."""

    def __init__(self, evaluate: Evaluator, score: str) -> None:
        self.evaluator, self.score = evaluate, score
        self.known: dict[frozenset[Key], Mapping[str, float]] = {}
        self.calls = 0

    def __call__(self, subnet: Subnet) -> Mapping[str, float]:
        if subnet.components not in self.known:
            self.calls += 1
            self.known[subnet.components] = self.evaluator.scores(subnet, self.score)
        return self.known[subnet.components]
