"""``nonspeech: made``: a share of the training utterances is replaced by sounds without speech and an empty transcript.

It stands behind ESPnet's preprocessor, so it works with ESPnet's iterators and with lhotse's, and needs no data of its own.
Lengths stay, and so do batches. Sounds: see :mod:`espnet_todm.data.nonspeech`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional
from weakref import WeakSet

import numpy as np

from espnet_todm.data.nonspeech import KINDS, sound_of
from espnet_todm.errors import UserError
from espnet_todm.util.acoustics import FRAME_SAMPLES, SAMPLING_RATE
from espnet_todm.util.checks import build, check_number

Arrays = dict[str, np.ndarray]
SPEECH, TEXT = "speech", "text"
_MADE: WeakSet[WithNonSpeech] = WeakSet()  # in this process, behind whatever iterators ESPnet has built


@dataclass(frozen=True)
class NonSpeech:
    """Options of ``nonspeech_conf``.

    share: of the training utterances, drawn anew in each epoch. begin: share of the epochs before the first one with such
    sounds; a model that has learned nothing yet would learn to write nothing.

    Features must be Kaldi's filterbanks as stage 3 computes them, and audio 16 kHz. Raises UserError for a share that is not
    above 0 and below 1, and for a begin that is not from 0 on and below 1.
    """

    share: float = 0.03
    begin: float = 0.5

    def __post_init__(self) -> None:
        check_number("nonspeech_conf.share", self.share, above=0, below=1)
        check_number("nonspeech_conf.begin", self.begin, at_least=0, below=1)


class WithNonSpeech:
    """A preprocessor of training: (name, {speech, text}) -> {speech, text}, the text as numbers of tokens.

    stock: ESPnet's. It draws from numpy's generator, which ESPnet seeds for each epoch and worker of a data loader.
    epochs: of the whole training.
    """

    def __init__(self, stock: Callable[[str, dict[str, Any]], Arrays], options: NonSpeech, epochs: int) -> None:
        self.stock, self.options = stock, options
        self.first = int(options.begin * epochs) + 1
        self.epoch = 1  # that runs; data loaders' workers, which are copies, begin anew in each epoch
        self._fbank: Optional[Any] = None
        _MADE.add(self)

    def __call__(self, name: str, data: dict[str, Any]) -> Arrays:
        arrays = self.stock(name, data)
        if self.epoch < self.first or SPEECH not in arrays or TEXT not in arrays:
            return arrays
        if np.random.random_sample() >= self.options.share:
            return arrays
        speech, rng = arrays[SPEECH], np.random.default_rng(np.random.randint(2**31))
        kind = list(KINDS)[rng.integers(len(KINDS))]
        sound = self._like(speech, kind, rng)
        return {**arrays, SPEECH: sound.astype(speech.dtype), TEXT: arrays[TEXT][:0]}

    def _like(self, speech: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
        """Samples (N,) or features (T, F) of a sound, of the shape of those of speech."""
        if speech.ndim == 1:
            return sound_of(kind, len(speech), rng)
        if speech.ndim != 2:
            raise UserError(f"nonspeech: made is for one channel; this speech has the shape {list(speech.shape)}")
        if self._fbank is None:
            from espnet_todm.data.features import fbank_extractor  # lhotse takes seconds to import

            self._fbank = fbank_extractor(SAMPLING_RATE, speech.shape[1])
        samples = sound_of(kind, max(len(speech), 3) * FRAME_SAMPLES, rng)  # a window is longer than two frames
        features = np.asarray(self._fbank.extract(samples, SAMPLING_RATE))
        return features[: len(speech)]


NONSPEECH = {"made": NonSpeech}


def tell_epoch(epoch: int) -> None:
    """Call this when an epoch of the training begins, the first of which is 1, before its data are read."""
    for preprocess in _MADE:
        preprocess.epoch = epoch


def check_nonspeech(args: Any) -> Optional[NonSpeech]:
    """The options ``nonspeech`` and ``nonspeech_conf`` of a training; None without. Raises UserError for wrong ones."""
    conf = getattr(args, "nonspeech_conf", None) or {}
    if getattr(args, "nonspeech", None) is None:
        if conf:
            raise UserError(f"nonspeech_conf: {conf} is for nonspeech: made, but there is no nonspeech")
        return None
    if not args.use_preprocessor:
        raise UserError("nonspeech: made needs use_preprocessor: true, behind which it stands")
    return build(NonSpeech, conf, "nonspeech_conf")


def with_nonspeech(args: Any, stock: Any) -> Any:
    """The preprocessor of a training: ESPnet's, with non-speech behind it if the options ask for it."""
    options = check_nonspeech(args)
    return stock if options is None else WithNonSpeech(stock, options, args.max_epoch)
