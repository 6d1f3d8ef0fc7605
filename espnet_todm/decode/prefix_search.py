"""CTC prefix beam search with flashlight-text, with a word n-gram, a lexicon and a prior. Needs flashlight-text.

Graves, "Sequence transduction with recurrent neural networks" (2012), section 2.5, and Hannun et al., arXiv 1408.2873:
the probabilities of all alignments of a label sequence are added. flashlight's decoder without a lexicon does exactly
this. Its decoder with a lexicon does not: it cannot repeat the last label of a word, and it needs no blank in a double
label at a word's end. Words are therefore implemented as a language model over labels, see
:mod:`espnet_todm.decode.word_model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Optional

import numpy as np
from flashlight.lib.text.decoder import CriterionType, LexiconFreeDecoder, LexiconFreeDecoderOptions, ZeroLM

from espnet_todm.decode.options import SearchOptions
from espnet_todm.decode.word_model import WordModel, WordScorer
from espnet_todm.errors import UserError
from espnet_todm.util.files import PathLike, read_json

TOKENS_PER_FRAME = 10
"""Number of most likely labels that are tried in a frame. With a character model, 3 on average are within a factor of
3000 of the best. On the mini corpus, 20 labels found the same words as 10, in twice the time."""


class PrefixSearch:
    """Token numbers of an utterance from its log posteriors.

    Args:
        tokens: the model's V tokens.
        blank: the number of the blank.
        silent: tokens that are never written; only used with a language model or a lexicon.
        options: of kind "prefix".
        words: the content of ``options.lm`` and ``options.lexicon``, if it has been read already.

    Raises:
        UserError: a file is missing or does not fit the tokens.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        blank: int,
        silent: Sequence[int],
        options: SearchOptions,
        words: Optional[WordModel] = None,
    ) -> None:
        self.blank = blank
        self.bias: np.ndarray = np.zeros(len(tokens), dtype=np.float32)
        if options.prior_weight:
            self.bias = -options.prior_weight * read_prior(str(options.prior), len(tokens))
        self.scorer = ZeroLM()
        if words is not None or options.lm or options.lexicon or options.word_score:
            words = words or WordModel(tokens, silent, options.lm, options.lexicon)
            self.scorer = WordScorer(words, options.lm_weight, options.word_score)
        settings = LexiconFreeDecoderOptions(
            beam_size=options.beam_size,
            beam_size_token=min(TOKENS_PER_FRAME, len(tokens)),
            beam_threshold=options.beam_threshold,
            lm_weight=1.0,  # the scorer applies the weights itself
            sil_score=0.0,
            log_add=True,
            criterion_type=CriterionType.CTC,
        )
        self.decoder = LexiconFreeDecoder(settings, self.scorer, blank, blank, [])

    def __call__(self, log_posteriors: np.ndarray) -> list[int]:
        """(T, V) natural logarithms -> the labels of the best hypothesis."""
        labels = self.hypotheses(log_posteriors)[0][0]
        return self.scorer.words.whole_words(labels) if isinstance(self.scorer, WordScorer) else labels

    def hypotheses(self, log_posteriors: np.ndarray) -> list[tuple[list[int], float]]:
        """(T, V) -> labels and scores of all hypotheses in the final beam, the best first. Without frames there are no
        labels.
        """
        frames, tokens = log_posteriors.shape
        if frames == 0:
            return [([], 0.0)]
        emissions = np.ascontiguousarray(log_posteriors + self.bias, dtype=np.float32)
        found = self.decoder.decode(emissions.ctypes.data, frames, tokens)
        return [(self._labels(one.tokens), one.score) for one in found]

    def _labels(self, path: Sequence[int]) -> list[int]:
        """The labels of an alignment (T + 2,), to which flashlight adds a blank at each end."""
        return [label for label, _ in groupby(path) if label != self.blank]


def read_prior(path: PathLike, tokens: int) -> np.ndarray:
    """(V,) log prior from a JSON file. Raises UserError if it does not have one number for each of the V tokens."""
    stored = read_json(path)
    values = stored.get("log_prior") if isinstance(stored, dict) else None
    if not isinstance(values, list) or len(values) != tokens:
        raise UserError(f"prior: {path}: log_prior must hold a number for each of the model's {tokens} tokens")
    return np.array(values, dtype=np.float32)
