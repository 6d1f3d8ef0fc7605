"""The options of ``iterator: lhotse``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

from espnet_todm.errors import UserError
from espnet_todm.util.acoustics import MEL_BINS, SAMPLING_RATE
from espnet_todm.util.checks import check_choice, check_number

FEATURES = ("stored", "on_the_fly", "none")
RESUME = ("exact", "next_pass")
SPEEDS = (0.5, 2.0)


@dataclass(frozen=True)
class LhotseOptions:
    """Options of ``iterator_conf``.

    train: ``cuts.jsonl``, ``cuts.jsonl.gz`` or a Shar folder. valid: the same, for validation; ESPnet's tables without it.
    features: ``stored`` (the cuts' own), ``on_the_fly`` (Kaldi filterbanks of the audio, as stage 3 computes them) or
        ``none`` (audio, for a model with a front end).
    sampling_rate: of the audio, in Hz.
    max_duration: seconds of a rank's batch, every utterance counted with the length of the longest. With
        ``quadratic_duration: q``, an utterance of d seconds counts as d + d^2 / q.
    max_cuts: largest number of utterances in a rank's batch.
    num_buckets, buffer_size: utterances of one batch come from one of these buckets of similar lengths, which hold
        ``buffer_size`` utterances together.
    min_seconds, max_seconds: utterances of other lengths are left out of the training.
    speed_factors: each utterance is read at one of these speeds, picked anew in each pass through the corpus.
    noise: manifest of cuts that are mixed into a share ``noise_share`` of the utterances, at ``noise_snr`` dB (a number,
        or lowest and highest).
    resume: whether a resumed run must draw the batches that the stopped run would have drawn (``exact``), or may begin a
        new pass through the corpus where its sampler or its number of ranks is another (``next_pass``).

    Raises UserError for values that are not allowed.
    """

    train: Optional[str] = None
    valid: Optional[str] = None
    features: str = "stored"
    sampling_rate: int = SAMPLING_RATE
    max_duration: float = 300.0
    quadratic_duration: Optional[float] = None
    max_cuts: Optional[int] = None
    num_buckets: int = 30
    buffer_size: int = 10000
    min_seconds: float = 0.0
    max_seconds: Optional[float] = None
    speed_factors: Optional[Sequence[float]] = None
    noise: Optional[str] = None
    noise_snr: Union[float, Sequence[float]] = (10.0, 20.0)
    noise_share: float = 0.5
    resume: str = "exact"

    def __post_init__(self) -> None:
        if not isinstance(self.train, str):
            raise UserError(f"{_key('train')}: {self.train!r}, but cuts.jsonl.gz or a Shar folder is needed")
        for name in ("valid", "noise"):
            if not isinstance(getattr(self, name), (str, type(None))):
                raise UserError(f"{_key(name)}: {getattr(self, name)!r}, but a path is expected")
        check_choice(_key("features"), self.features, FEATURES)
        check_choice(_key("resume"), self.resume, RESUME)
        self._check_numbers()
        self._check_speeds()
        self._check_noise()

    @property
    def snr(self) -> tuple[float, float]:
        """Lowest and highest ratio of speech to noise, in dB."""
        low, high = self.noise_snr if isinstance(self.noise_snr, Sequence) else (self.noise_snr, self.noise_snr)
        return float(low), float(high)

    @property
    def field(self) -> str:
        """The field of a cut that is read."""
        return "features" if self.features == "stored" else "recording"

    def _check_numbers(self) -> None:
        check_number(_key("max_duration"), self.max_duration, above=0)
        check_number(_key("min_seconds"), self.min_seconds, at_least=0)
        for name, least in (("sampling_rate", 1000), ("num_buckets", 1), ("buffer_size", 1)):
            check_number(_key(name), getattr(self, name), at_least=least, whole=True)
        for name in ("quadratic_duration", "max_seconds"):
            if getattr(self, name) is not None:
                check_number(_key(name), getattr(self, name), above=self.min_seconds if name == "max_seconds" else 0)
        if self.max_cuts is not None:
            check_number(_key("max_cuts"), self.max_cuts, at_least=1, whole=True)

    def _check_speeds(self) -> None:
        if self.speed_factors is None:
            return
        if (
            not isinstance(self.speed_factors, Sequence)
            or isinstance(self.speed_factors, str)
            or not self.speed_factors
        ):
            raise UserError(f"{_key('speed_factors')}: {self.speed_factors!r}, but a list of speeds is expected")
        for factor in self.speed_factors:
            check_number(_key("speed_factors"), factor, at_least=SPEEDS[0], at_most=SPEEDS[1])
        self._check_audio("speed_factors")

    def _check_noise(self) -> None:
        check_number(_key("noise_share"), self.noise_share, at_least=0, at_most=1)
        given: Any = self.noise_snr
        pair = list(given) if isinstance(given, (list, tuple)) else [given, given]
        for value in pair:
            check_number(_key("noise_snr"), value)
        if len(pair) != 2 or pair[0] > pair[1]:
            raise UserError(f"{_key('noise_snr')}: {given!r}, but a number or [lowest, highest] is expected")
        if self.noise is not None:
            self._check_audio("noise")

    def _check_audio(self, name: str) -> None:
        if self.features == "stored":
            raise UserError(
                f"{_key(name)}: needs audio, but features: stored reads none; say features: on_the_fly or none"
            )


ITERATORS = {"lhotse": LhotseOptions}  # name in ``iterator:`` -> class of its options


def iterator_options(args: argparse.Namespace) -> LhotseOptions:
    """The options of ``iterator: lhotse`` in ESPnet's training options. Raises UserError if they do not fit the others."""
    options = LhotseOptions(**args.iterator_conf)
    if getattr(args, "multiple_iterator", False):
        raise UserError("multiple_iterator: true is for ESPnet's tables; iterator: lhotse reads shards by itself")
    if options.features == "none" and args.input_size is not None:
        raise UserError(
            f"{_key('features')}: none gives audio, but input_size: {args.input_size} is for features; leave it out"
        )
    if options.features == "on_the_fly" and args.input_size != MEL_BINS:
        raise UserError(
            f"{_key('features')}: on_the_fly computes {MEL_BINS} filters, but input_size is {args.input_size};"
            f" say --input_size {MEL_BINS}"
        )
    if options.features == "stored" and args.input_size is None:
        raise UserError(f"{_key('features')}: stored needs input_size, the number of features of a frame")
    return options


def _key(name: str) -> str:
    return f"iterator_conf.{name}"
