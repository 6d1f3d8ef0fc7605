"""Words from the posteriors of phonemes, with a lexicon of pronunciations and a word n-gram. Needs flashlight-text.

This is flashlight's decoder with a lexicon: a prefix tree of the words with the best unigram of each branch, KenLM at each
word's end, and the probabilities of all alignments of the same words added. It cannot repeat the last label of a word, so
each word stands in the tree twice, the second time with its last phoneme doubled. Alignments of any duration then count
exactly once. (Those with one more frame of the last phoneme after blanks count too; CTC would read another label.)
Words that sound alike are different hypotheses; the language model chooses between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Optional

import numpy as np
from flashlight.lib.text.decoder import (
    LM,
    CriterionType,
    LexiconDecoder,
    LexiconDecoderOptions,
    SmearingMode,
    Trie,
    ZeroLM,
)

from espnet_todm.data.transcripts import composed
from espnet_todm.decode.options import SearchOptions
from espnet_todm.decode.prefix_search import read_prior
from espnet_todm.decode.word_model import load_kenlm
from espnet_todm.errors import UserError
from espnet_todm.lm.arpa import read_vocabulary
from espnet_todm.lm.spelling import read_pronunciations
from espnet_todm.util.vocabulary import UNKNOWN

_LN10 = math.log(10)


class Pronunciations:
    """Files that a search reads once, for any scales: the tree of words, and the language model.

    Args:
        tokens: the model's V phonemes, the last of a word marked, and special tokens.
        lexicon: file of words and their phonemes.
        lm: ARPA file of a word n-gram, or None.

    Raises:
        UserError: a file is missing, invalid, or does not fit the tokens.
    """

    def __init__(self, tokens: Sequence[str], lexicon: str, lm: Optional[str] = None) -> None:
        entries = read_pronunciations(lexicon, tokens)
        listed = [UNKNOWN, *(read_vocabulary(lm) if lm else ())]
        index = {composed(word): number for number, word in enumerate(listed)}
        for word, _ in entries:
            if composed(word) not in index:
                index[composed(word)] = len(listed)
                listed.append(word)
        self.tokens, self.words = len(tokens), [composed(word) for word in listed]
        self.lm: LM = load_kenlm(lm, listed) if lm else ZeroLM()
        self.trie = self._tree([(index[composed(word)], spelled) for word, spelled in entries])

    def _tree(self, entries: Sequence[tuple[int, list[int]]]) -> Trie:
        trie, start = Trie(self.tokens, -1), self.lm.start(True)
        scored = [(self.lm.score(start, word)[1], word, spelled) for word, spelled in entries]
        # The likeliest first, since flashlight keeps no more than six words of one pronunciation.
        for score, word, spelled in sorted(scored, key=lambda entry: -entry[0]):
            trie.insert(spelled, word, score)
            trie.insert([*spelled, spelled[-1]], word, score)
        trie.smear(SmearingMode.MAX)
        return trie


class PronunciationSearch:
    """The text of an utterance from its log posteriors of phonemes.

    Args:
        blank: the number of the blank.
        silent: tokens that are never written; at least one.
        options: of kind "prefix".
        words: the content of ``options.lm`` and ``options.lexicon``.

    Raises:
        UserError: the prior's file is missing or does not fit the tokens, or no token is silent.
    """

    def __init__(self, blank: int, silent: Sequence[int], options: SearchOptions, words: Pronunciations) -> None:
        if not silent:
            raise UserError(
                f"lexicon: {options.lexicon}: a model of phonemes needs <unk> or <sos/eos> in its token list"
            )
        self.words = words
        self.bias: np.ndarray = np.zeros(words.tokens, dtype=np.float32)
        if options.prior_weight:
            self.bias = -options.prior_weight * read_prior(str(options.prior), words.tokens)
        settings = LexiconDecoderOptions(
            beam_size=options.beam_size,
            beam_size_token=words.tokens,
            beam_threshold=options.beam_threshold,
            lm_weight=options.lm_weight * _LN10 if options.lm else 0.0,  # KenLM's logarithms are of base 10
            word_score=options.word_score,
            unk_score=-np.inf,
            sil_score=0.0,
            log_add=True,
            criterion_type=CriterionType.CTC,
        )
        # flashlight's silence may stand between words without a blank; here it is a token that is never likely.
        self.decoder = LexiconDecoder(settings, self.words.trie, self.words.lm, silent[0], blank, 0, [], False)

    def __call__(self, log_posteriors: np.ndarray) -> str:
        """(T, V) natural logarithms -> the words of the best hypothesis. A word that has not ended is left out."""
        found = self.hypotheses(log_posteriors)
        return found[0][0] if found else ""

    def hypotheses(self, log_posteriors: np.ndarray) -> list[tuple[str, float]]:
        """(T, V) -> words and scores of all hypotheses in the final beam, the best first."""
        frames, tokens = log_posteriors.shape
        if frames == 0:
            return []
        emissions = np.ascontiguousarray(log_posteriors + self.bias, dtype=np.float32)
        found = self.decoder.decode(emissions.ctypes.data, frames, tokens)
        return [(" ".join(self.words.words[word] for word in one.words if word >= 0), one.score) for one in found]
