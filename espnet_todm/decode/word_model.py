"""Word constraints on token sequences: a lexicon, and a word n-gram read by KenLM. Needs flashlight-text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Optional

from flashlight.lib.text.decoder import LM, LMState
from flashlight.lib.text.decoder.kenlm import KenLM
from flashlight.lib.text.dictionary import Dictionary

from espnet_todm.data.transcripts import composed
from espnet_todm.decode.text import NEVER
from espnet_todm.errors import UserError, last_line
from espnet_todm.lm.arpa import read_vocabulary, write_body
from espnet_todm.lm.spelling import read_spellings, word_parts
from espnet_todm.util.vocabulary import SPACE, UNKNOWN

_LN10 = math.log(10)
_WORD = -1  # key in a node of the trie: a word may end here

Trie = dict[int, Any]  # token -> trie of the possible next tokens


class WordModel:
    """Files that a search reads once, for any scales.

    Args:
        tokens: the model's V tokens.
        silent: tokens that are never written.
        lm: ARPA file of a word n-gram, or None.
        lexicon: file of words and their tokens, or None to allow any word.

    Raises:
        UserError: a file is missing, invalid, or does not fit the tokens.
    """

    def __init__(
        self, tokens: Sequence[str], silent: Sequence[int], lm: Optional[str] = None, lexicon: Optional[str] = None
    ) -> None:
        self.parts = word_parts(tokens)
        self.silent = frozenset(silent)
        self.space = list(tokens).index(SPACE) if SPACE in tokens else None  # between words, never part of a word
        self.trie = _trie(read_spellings(lexicon, tokens)) if lexicon else None
        self.kenlm: Optional[KenLM] = None
        self.index: dict[str, int] = {}
        if lm:
            words = [UNKNOWN, *read_vocabulary(lm)]
            self.index = {composed(word): number for number, word in enumerate(words)}
            self.kenlm = load_kenlm(lm, words)

    def whole_words(self, labels: Sequence[int]) -> list[int]:
        """Labels up to the end of the last word before the first one that is not in the lexicon. In a small beam, all
        hypotheses may end within a word.
        """
        node, kept = self.trie, 0
        if node is None:
            return list(labels)
        for position, label in enumerate(labels):
            if self.parts[label].begins:
                if node is not self.trie and _WORD not in node:
                    return list(labels[:kept])
                node, kept = self.trie or {}, position
            if label != self.space:
                node = node.get(label, {})
        return list(labels if node is self.trie or _WORD in node else labels[:kept])

    def start(self) -> Optional[LMState]:
        """KenLM's state after ``<s>``."""
        return self.kenlm.start(False) if self.kenlm else None

    def score(self, context: Optional[LMState], word: str) -> tuple[Optional[LMState], float]:
        """The state after a word, and the word's natural log probability: 0 without a language model."""
        if self.kenlm is None:
            return None, 0.0
        state, score = self.kenlm.score(context, self.index.get(composed(word), self.index[UNKNOWN]))
        return state, score * _LN10

    def finish(self, context: Optional[LMState]) -> float:
        """Natural log probability of the end of the sentence."""
        return self.kenlm.finish(context)[1] * _LN10 if self.kenlm else 0.0


class _Prefix:
    """A sequence of labels: KenLM's state after its complete words, the text of its last word, and that word's node in
    the trie. ``score``: cost of the last label; ``ended``: the state and the score if the last word ends here.
    """

    __slots__ = ("context", "ended", "node", "score", "word")

    def __init__(self, context: Optional[LMState], word: str, node: Optional[Trie], score: float) -> None:
        self.context, self.word, self.node, self.score = context, word, node, score
        self.ended: Optional[tuple[Optional[LMState], float]] = None


class WordScorer(LM):
    """The language model with the interface of flashlight's search, label by label. A word is scored when it has ended.

    Args:
        words: the language model and the lexicon.
        lm_weight, word_score: see SearchOptions.
    """

    def __init__(self, words: WordModel, lm_weight: float, word_score: float) -> None:
        super().__init__()
        self.words, self.lm_weight, self.word_score = words, lm_weight, word_score
        self.prefixes: dict[LMState, _Prefix] = {}

    def start(self, start_with_nothing: bool) -> LMState:
        """The state of the empty prefix; clears the previous utterance."""
        state = LMState()
        self.prefixes = {state: _Prefix(self.words.start(), "", self.words.trie, 0.0)}
        return state

    def score(self, state: LMState, token: int) -> tuple[LMState, float]:
        """The prefix extended by one label, and the change of its score."""
        child = state.child(token)
        found = self.prefixes.get(child)
        if found is None:
            found = self.prefixes[child] = self._extend(self.prefixes[state], token)
        return child, found.score

    def finish(self, state: LMState) -> tuple[LMState, float]:
        """The change of the score at the end of the utterance."""
        context, score = self._end_word(self.prefixes[state])
        return state, score + self.lm_weight * self.words.finish(context)

    def _extend(self, prefix: _Prefix, token: int) -> _Prefix:
        if token in self.words.silent:
            return _Prefix(prefix.context, prefix.word, prefix.node, NEVER)
        begins, text = self.words.parts[token]
        context, score = self._end_word(prefix) if begins else (prefix.context, 0.0)
        node = self.words.trie if begins else prefix.node
        if node is not None and token != self.words.space:
            node = node.get(token)
            if node is None:
                node, score = {}, score + NEVER
        return _Prefix(context, text if begins else prefix.word + text, node, score)

    def _end_word(self, prefix: _Prefix) -> tuple[Optional[LMState], float]:
        """The state and the score after the last word of a prefix, if there is one."""
        if prefix.ended is None:
            prefix.ended = prefix.context, 0.0
            if prefix.node is not None and prefix.node is not self.words.trie and _WORD not in prefix.node:
                prefix.ended = prefix.context, NEVER
            elif prefix.word:
                context, score = self.words.score(prefix.context, prefix.word)
                prefix.ended = context, self.lm_weight * score + self.word_score
        return prefix.ended


def _trie(spellings: Sequence[Sequence[int]]) -> Trie:
    root: Trie = {}
    for spelling in spellings:
        node = root
        for token in spelling:
            node = node.setdefault(token, {})
        node[_WORD] = {}
    return root


def load_kenlm(path: str, words: Sequence[str]) -> KenLM:
    """KenLM's model of an ARPA file, which numbers words in the order of ``words``. Headers are removed, since KenLM does
    not accept them.
    """
    dictionary = Dictionary()
    for word in words:
        dictionary.add_entry(word)
    with suppress(RuntimeError):
        return KenLM(path, dictionary)
    with TemporaryDirectory() as folder:
        bare = str(Path(folder, "bare.arpa"))
        write_body(path, bare)
        try:
            return KenLM(bare, dictionary)
        except RuntimeError as error:
            reason = last_line(str(error)) or "no reason given"
            raise UserError(f"lm: {path}: KenLM cannot read it ({reason})") from None
