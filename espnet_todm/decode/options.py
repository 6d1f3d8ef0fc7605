"""Decoding options, as a dataclass that can be sent to jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from espnet_todm.errors import UserError
from espnet_todm.util.checks import check_choice, check_number

GREEDY = "greedy"
PREFIX = "prefix"  # CTC
SEARCH = "search.json"  # file beside decoded text with the decoding options
TRANSDUCER_BEAM = ("default", "maes", "tsd", "alsd", "nsc")  # ESPnet's names


@dataclass(frozen=True)
class SearchOptions:
    """Decoding options. Those from ``beam_threshold`` on are for ``prefix``. All logarithms are natural.

    Args:
        kind: "greedy"; "prefix", the prefix beam search of CTC; or one of ESPnet's beam searches for transducers:
            "default", "maes", "tsd", "alsd", "nsc".
        beam_size: number of hypotheses; greedy search has one.
        beam_threshold: hypotheses that score lower than the best by more than this are dropped.
        lm: ARPA file (plain or .gz) of a word n-gram.
        lexicon: words and their tokens; if given, only these words are written.
        lm_weight: weight of the language model's log probability, which is added to the sum of log posteriors.
        word_score: added for each word; values above 0 give more words.
        prior_weight: weight of the tokens' log prior, which is subtracted from the log posteriors in each frame.
        prior: JSON file with ``log_prior``; needed if ``prior_weight`` is not 0.

    Raises:
        UserError: a value is not allowed.
    """

    kind: str = GREEDY
    beam_size: int = 5
    beam_threshold: float = 25.0
    lm: Optional[str] = None
    lexicon: Optional[str] = None
    lm_weight: float = 0.5
    word_score: float = 0.0
    prior_weight: float = 0.0
    prior: Optional[str] = None

    def __post_init__(self) -> None:
        check_choice("search", self.kind, (GREEDY, PREFIX, *TRANSDUCER_BEAM))
        check_number("beam_size", self.beam_size, at_least=1, whole=True)
        check_number("beam_threshold", self.beam_threshold, above=0)
        check_number("lm_weight", self.lm_weight, at_least=0)
        check_number("word_score", self.word_score)
        check_number("prior_weight", self.prior_weight, at_least=0)
        for name in ("lm", "lexicon", "prior"):
            if getattr(self, name) and self.kind != PREFIX:
                raise UserError(f"{name}: {getattr(self, name)} needs search: {PREFIX}, but search is {self.kind}")
        if self.prior_weight and not self.prior:
            raise UserError(f"prior_weight: {self.prior_weight} needs the file with the prior; tune_lm makes it")
