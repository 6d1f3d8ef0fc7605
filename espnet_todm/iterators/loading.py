"""Reads the data of a batch's cuts: audio or features, noise, and the tokens by ESPnet's preprocessor."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from random import Random
from typing import Any, Optional, Union

import numpy as np
from lhotse import Fbank
from lhotse.cut import Cut, MonoCut
from torch import Tensor
from torch.utils.data import Dataset

from espnet_todm.data.audio import in_words, libsndfile
from espnet_todm.data.features import fbank_extractor
from espnet_todm.errors import UserError
from espnet_todm.iterators.batches import Drawn
from espnet_todm.iterators.options import LhotseOptions
from espnet_todm.iterators.sources import Manifest, Shar

Arrays = dict[str, np.ndarray]


class BatchReader(Dataset[tuple[list[str], dict[str, Tensor]]]):
    """Drawn batch -> (names, tensors), as ESPnet's iterators yield it.

    Args:
        source: of the cuts.
        options: what is read of them.
        preprocess: ESPnet's preprocessor: (name, {speech, text}) -> {speech, text}, the text as numbers of tokens.
        collate: ESPnet's function that pads arrays: [(name, {speech, text})] -> (names, {speech (B, T[, F]), speech_lengths
            (B,), text (B, U), text_lengths (B,)}).
        dtype: of speech.
        noise: cuts of noise, or none.
    """

    def __init__(
        self,
        source: Union[Manifest, Shar],
        options: LhotseOptions,
        preprocess: Callable[[str, dict[str, Any]], Arrays],
        collate: Callable[[Collection[tuple[str, Arrays]]], tuple[list[str], dict[str, Tensor]]],
        dtype: str = "float32",
        noise: Sequence[MonoCut] = (),
    ) -> None:
        self.source, self.options, self.preprocess, self.collate = source, options, preprocess, collate
        self.dtype, self.noise = dtype, noise
        self.fbank: Optional[Fbank] = None

    def __getitem__(self, drawn: Drawn) -> tuple[list[str], dict[str, Tensor]]:
        """Raises UserError for a cut without words, and where its data are missing, damaged or of another kind."""
        rng = Random(f"noise {drawn.seed}")
        return self.collate([(cut.id, self._read(cut, rng)) for cut in drawn.cuts])

    def _read(self, cut: MonoCut, rng: Random) -> Arrays:
        words = " ".join(one.text for one in sorted(cut.supervisions, key=lambda one: one.start) if one.text)
        if not words:
            raise UserError(f"{cut.id}: its supervisions have no text")
        speech = self._features(cut) if self.options.features == "stored" else self._heard(cut, rng)
        arrays = self.preprocess(cut.id, {"speech": speech, "text": words})
        return {
            name: array.astype(self.dtype if array.dtype.kind == "f" else "int64", copy=False)
            for name, array in arrays.items()
        }

    def _features(self, cut: MonoCut) -> np.ndarray:
        """Stored features, (T, F)."""
        try:
            return np.asarray(self.source.fill(cut).load_features())
        except UserError:
            raise
        except Exception as error:  # whatever a reader raises, these features cannot be used
            raise UserError(f"{cut.id}: its features cannot be read: {in_words(error)}") from error

    def _heard(self, cut: MonoCut, rng: Random) -> np.ndarray:
        """Audio with noise, (T,), or its features, (T, F)."""
        options = self.options
        if cut.sampling_rate != options.sampling_rate:
            raise UserError(
                f"{cut.id}: {cut.sampling_rate} Hz, but iterator_conf.sampling_rate is {options.sampling_rate} Hz"
            )
        samples = self._load(self._noisy(self.source.fill(cut), rng), cut)
        if options.features == "none":
            return samples[0]
        if self.fbank is None:
            self.fbank = fbank_extractor(options.sampling_rate)
        return np.asarray(self.fbank.extract(samples, options.sampling_rate))

    def _load(self, cut: Cut, named: MonoCut) -> np.ndarray:
        """Samples (1, T) float32 in [-1, 1]."""
        try:
            with libsndfile():
                return cut.load_audio()[:, : named.num_samples]  # a mix may be a sample longer
        except UserError:
            raise
        except Exception as error:  # whatever the decoder raises, this audio cannot be used
            sources = [one.source for one in named.recording.sources if one.type == "file"]
            gone = [str(path) for path in sources if not Path(path).is_file()]
            why = f"is gone: {gone[0]}: no such file" if gone else f"cannot be read: {in_words(error)}"
            raise UserError(f"{named.id}: its audio {why}") from error

    def _noisy(self, cut: MonoCut, rng: Random) -> Cut:
        """The cut with noise from beginning to end: pieces of one or more recordings, at one ratio."""
        if not self.noise or rng.random() >= self.options.noise_share:
            return cut
        mixed, begin, ratio = cut, 0.0, rng.uniform(*self.options.snr)
        while cut.duration - begin > 0.01:
            piece, left = rng.choice(self.noise), cut.duration - begin
            if piece.duration > left:
                piece = piece.truncate(offset=rng.uniform(0, piece.duration - left), duration=left)
            mixed = mixed.mix(piece, offset_other_by=begin, snr=ratio, preserve_id="left")
            begin += piece.duration
        return mixed


def read_noise(path: Optional[str], sampling_rate: int) -> list[MonoCut]:
    """All cuts of a manifest of noise. Raises UserError where there are none, or their rate is another."""
    if path is None:
        return []
    if not Path(path).is_file():
        raise UserError(f"iterator_conf.noise: {path}: no such file; a manifest of cuts is expected")
    noise = list(Manifest(Path(path), "recording").cuts())
    if not noise:
        raise UserError(f"iterator_conf.noise: {path}: holds no cut")
    for cut in noise:
        if cut.sampling_rate != sampling_rate:
            raise UserError(
                f"iterator_conf.noise: {path}: {cut.id}: {cut.sampling_rate} Hz, but {sampling_rate} Hz is needed"
            )
    return [cut.drop_supervisions() for cut in noise if cut.duration > 0]
