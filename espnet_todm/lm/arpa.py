"""Read n-gram models in ARPA's format: their words, and the probability and perplexity that they give to text.

Of a large model only the n-grams that occur in the text are kept, so any size can be evaluated.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from espnet_todm.data.transcripts import composed, plain_text
from espnet_todm.errors import UserError
from espnet_todm.lm.ngram import BEGIN, END, IMPOSSIBLE
from espnet_todm.util.files import PathLike, read_lines
from espnet_todm.util.vocabulary import UNKNOWN

_EXPECTED = "an n-gram model in ARPA's text format, plain or .gz, is expected"
_SECTION = re.compile(r"\\(\d+)-grams:")
_WHITE = " \t\r\f"
_SPACES = re.compile(f"[{_WHITE}]+")
_CAPITAL_UNKNOWN = "<UNK>"
_OTHER_FORMATS = ("iARPA", "qARPA", "Qblmt", "blmt", "mmap lm")  # IRSTLM's and KenLM's own
_MISSING_UNKNOWN = -100.0  # log10 p that KenLM gives to any other word where the model has no <unk>


@dataclass(frozen=True)
class Perplexity:
    """How a model likes some text. ``</s>`` of each sentence counts as a predicted word, as everywhere.

    log_prob: sum of log10 p over all; unknown_log_prob: the part of it that falls on words the model has not.
    """

    sentences: int
    words: int
    unknown: int
    log_prob: float
    unknown_log_prob: float

    @property
    def perplexity(self) -> float:
        """Over all words and sentence ends."""
        return _power(-self.log_prob / (self.words + self.sentences))

    @property
    def perplexity_of_known(self) -> float:
        """Without the words that the model has not."""
        return _power(-(self.log_prob - self.unknown_log_prob) / (self.words - self.unknown + self.sentences))


class Arpa:
    """The n-grams of an ARPA file in composed letters, or those of its n-grams that ``sentences`` need.

    Raises UserError when the file is missing or not what it should be.
    """

    def __init__(self, path: PathLike, sentences: Optional[Sequence[Sequence[str]]] = None) -> None:
        self.entries: dict[str, tuple[float, float]] = {}  # words -> log10 p, log10 back-off weight
        self.order = 0
        wanted: Optional[set[str]] = None
        for number, spelled, log_prob, backoff in read_entries(path):
            words = composed(spelled)
            if number > self.order:
                self.order = number
                if sentences is not None:
                    if number == 2:  # all words are known by now
                        sentences = [self._known(words_of) for words_of in sentences]
                    wanted = set(_grams(sentences, number))
            if wanted is None or words in wanted or words in (UNKNOWN, END):
                self.entries[words] = log_prob, backoff
        if END not in self.entries:
            raise UserError(f"lm: {path} has no {END}, which ends every sentence; {_EXPECTED}")
        if UNKNOWN not in self.entries:
            logging.warning(
                "%s: has no <unk>; other words get a probability of 1e%g, as in KenLM", path, _MISSING_UNKNOWN
            )
            self.entries[UNKNOWN] = _MISSING_UNKNOWN, 0.0

    def score(self, words: Sequence[str]) -> list[float]:
        """log10 p of each of W words and of the sentence's end after them, W + 1 numbers."""
        history: list[str] = [BEGIN]
        scores = []
        for word in (*self._known(words), END):
            history = history[-(self.order - 1) :] if self.order > 1 else []
            scores.append(self._log_prob(history, word))
            history.append(word)
        return scores

    def _known(self, words: Sequence[str]) -> list[str]:
        return [word if word in self.entries else UNKNOWN for word in words]

    def _log_prob(self, history: Sequence[str], word: str) -> float:
        """Of the longest n-gram that there is, after the back-off weights of the histories that are too long for it."""
        weight = 0.0
        for start in range(len(history)):
            entry = self.entries.get(" ".join((*history[start:], word)))
            if entry is not None:
                return weight + entry[0]
            weight += self.entries.get(" ".join(history[start:]), (0.0, 0.0))[1]
        return weight + self.entries[word][0]


def measure_perplexity(path: PathLike, texts: Iterable[str]) -> Perplexity:
    """Perplexity of an ARPA file on sentences, words separated by spaces. Raises UserError for a text without words."""
    sentences = [words for words in (plain_text(text).split() for text in texts) if words]
    if not sentences:
        raise UserError("perplexity: the text has no words")
    model = Arpa(path, sentences)
    scores = [model.score(words) for words in sentences]
    unknown = [
        score
        for words, values in zip(sentences, scores)
        for word, score in zip(words, values)
        if word not in model.entries or word == UNKNOWN
    ]
    words_in_all = sum(map(len, sentences))
    return Perplexity(len(sentences), words_in_all, len(unknown), sum(map(sum, scores)), sum(unknown))


def read_vocabulary(path: PathLike) -> list[str]:
    """The words of an ARPA file as they stand, without ``<s>``, ``</s>`` and ``<unk>``. Raises UserError as Arpa does."""
    words = []
    for number, word, _, _ in read_entries(path):
        if number > 1:
            break
        words.append(word)
    return [word for word in words if word not in (BEGIN, END, UNKNOWN)]


def read_entries(path: PathLike) -> Iterator[tuple[int, str, float, float]]:
    """(order, words, log10 p, log10 back-off weight) of each line. Raises UserError, naming file and line.

    Words are split where KenLM splits them: a no-break space is part of a word. ``<UNK>`` is ``<unk>``, as in KenLM.
    """
    order = 0
    for number, line in _body(path):
        section = _SECTION.fullmatch(line)
        if section:
            order = int(section[1])
        elif line and order:
            try:
                log_prob, *words = _SPACES.split(line)
                backoff = _log10(words.pop()) if len(words) > order else 0.0
                if len(words) != order:
                    raise ValueError
                known = [UNKNOWN if word == _CAPITAL_UNKNOWN else word for word in words]
                yield order, " ".join(known), _log10(log_prob), backoff
            except ValueError:
                raise UserError(f"lm: {path}:{number}: no {order}-gram; {_EXPECTED}") from None
    if not order:
        raise UserError(f"lm: {path} has no \\1-grams:; {_EXPECTED}")


def write_body(path: PathLike, output: PathLike) -> None:
    """Write the model without what toolkits put around it, which KenLM refuses. Raises UserError as ``read_entries``."""
    with Path(output).open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in ("\\data\\", *(line for _, line in _body(path)), "\\end\\"))


def _body(path: PathLike) -> Iterator[tuple[int, str]]:
    """Lines by their numbers, from behind ``\\data\\``, before which stand headings of many kinds, to before ``\\end\\``."""
    begun = False
    if not Path(path).is_file():
        raise UserError(f"lm: {path}: no such file; {_EXPECTED}")
    for number, line in enumerate(read_lines(path), 1):
        line = line.strip(_WHITE)
        if begun and line == "\\end\\":
            return
        if begun:
            yield number, line
        elif line.startswith(_OTHER_FORMATS):
            raise UserError(f"lm: {path}:{number}: {line[:40]!r} begins another format; {_EXPECTED}")
        begun = begun or line == "\\data\\"
    missing = "\\end\\, it was cut off" if begun else "\\data\\"
    raise UserError(f"lm: {path} has no {missing}; {_EXPECTED}")


def _log10(text: str) -> float:
    """Some toolkits write -inf for what others call -99. Raises ValueError for what is no number."""
    value = max(float(text), IMPOSSIBLE)
    if not math.isfinite(value):
        raise ValueError
    return value


def _power(exponent: float) -> float:
    return float(10 ** min(exponent, 300.0))  # models with impossible words and back-off weights may ask for more


def _grams(sentences: Sequence[Sequence[str]], number: int) -> Iterator[str]:
    """All n-grams of so many words in the sentences, with their ends."""
    for words in sentences:
        padded = (BEGIN, *words, END)
        for start in range(len(padded) - number + 1):
            yield " ".join(padded[start : start + number])
