"""Word n-grams by interpolated modified Kneser-Ney smoothing, written as ARPA text that KenLM reads.

Chen and Goodman, "An empirical study of smoothing techniques for language modeling", 1998, section 3; the conventions are
those of KenLM's ``lmplz`` (Heafield et al., 2013): a sentence is ``<s> w ... w </s>``, n-grams that begin with ``<s>``
keep their plain counts, and the words share what the unigrams' discount frees with ``<unk>``. All in memory and in
numpy: about 2 s for a million words.

In ``a(h, w)`` h is a history, w the word after it. For the highest order a is the count, for lower orders the number of
different words that stand before ``h w``. With the discount D(a), larger for larger a,

    p(w | h) = (a(h, w) - D(a(h, w))) / S(h) + g(h) p(w | h'),    S(h) = sum over w of a(h, w),

where h' is h without its first word, and g(h), the back-off weight, is what makes the sum over w one.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from espnet_todm.errors import UserError
from espnet_todm.util.checks import check_number
from espnet_todm.util.files import PathLike, atomic_path, read_lines
from espnet_todm.util.stage_marker import atomic_stage, fingerprint
from espnet_todm.util.vocabulary import UNKNOWN

TEXT, ARPA = "text", "lm.arpa"  # file names
BEGIN, END = "<s>", "</s>"
MAX_ORDER = 5
_SPECIALS = (UNKNOWN, BEGIN, END)  # ids 0, 1, 2
_FALLBACK = (0.5, 1.0, 1.5)  # lmplz's, for text too small or too odd for the discounts to be estimated
IMPOSSIBLE = -99.0  # log10 of what is never predicted: <s>


@dataclass(frozen=True)
class Grams:
    """All n-grams of one order, G of them.

    words: (G,) id of the last word; histories, suffixes: (G,) index among the n-grams one shorter, without the last and
    without the first word; counts: (G,) a(h, w) of the module's formula; log_probs: (G,) log10 p(w | h);
    log_backoffs: (G,) log10 g of the n-gram as a history, 0 where nothing follows it.
    """

    words: np.ndarray
    histories: np.ndarray
    suffixes: np.ndarray
    counts: np.ndarray
    log_probs: np.ndarray
    log_backoffs: np.ndarray


@dataclass(frozen=True)
class NgramModel:
    """A model of ``len(grams)`` orders over ``vocabulary``, whose first entries are ``<unk>``, ``<s>`` and ``</s>``."""

    vocabulary: tuple[str, ...]
    grams: tuple[Grams, ...]


def estimate(sentences: Iterable[str], order: int = 3, min_count: int = 1) -> NgramModel:
    """Estimate a model of sentences, words separated by spaces. Words rarer than ``min_count`` become ``<unk>``.

    Raises UserError for an order outside 1 to 5, text without words, and ``<s>`` or ``</s>`` as a word.
    """
    check_number("lm_order", order, at_least=1, at_most=MAX_ORDER, whole=True)
    check_number("lm_min_count", min_count, at_least=1, whole=True)
    lines = [words for words in (sentence.split() for sentence in sentences) if words]
    frequency = Counter(word for words in lines for word in words)
    if not frequency:
        raise UserError("text of the language model: no words in it")
    for word in (BEGIN, END):
        if word in frequency:
            raise UserError(f"text of the language model: {word} stands for a sentence's end, it cannot be a word")
    kept = sorted(word for word, count in frequency.items() if count >= min_count and word != UNKNOWN)
    vocabulary = (*_SPECIALS, *kept)
    counted = _count(_encode(lines, vocabulary), order, len(vocabulary))
    return NgramModel(vocabulary, tuple(_smooth(counted, len(vocabulary))))


def write_arpa(model: NgramModel, path: PathLike) -> None:
    """Write a model in ARPA's format, UTF-8, atomically."""
    texts: list[list[str]] = [list(model.vocabulary)]
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("\\data\\\n" + "".join(f"ngram {n}={len(g.words)}\n" for n, g in enumerate(model.grams, 1)))
        for number, grams in enumerate(model.grams, 1):
            if number > 1:
                pairs = zip(grams.histories.tolist(), grams.words.tolist())
                texts.append([f"{texts[-1][history]} {model.vocabulary[word]}" for history, word in pairs])
            file.write(f"\n\\{number}-grams:\n")
            rows = zip(grams.log_probs.tolist(), texts[-1], grams.log_backoffs.tolist())
            if number == len(model.grams):
                file.writelines(f"{log_prob:.6f}\t{text}\n" for log_prob, text, _ in rows)
            else:
                file.writelines(f"{log_prob:.6f}\t{text}\t{backoff:.6f}\n" for log_prob, text, backoff in rows)
        file.write("\n\\end\\\n")


def make_ngram(text: PathLike, output: PathLike, order: int, min_count: int) -> Path:
    """Stage 7: ``estimate`` from ``text`` in the folder of stage 6, to ``lm.arpa`` in the folder ``output``.

    Raises UserError as ``estimate``, and when stage 6 was not run.
    """
    options = {"stage": "n-gram", "order": order, "min_count": min_count, "text": fingerprint(text)}
    with atomic_stage(output, options) as folder:
        if folder is None:
            return Path(output)
        model = estimate(read_lines(Path(text) / TEXT), order, min_count)
        write_arpa(model, folder / ARPA)
    counts = ", ".join(f"{len(grams.words)} {n}-grams" for n, grams in enumerate(model.grams, 1))
    logging.info("%s: %s", output, counts)
    return Path(output)


def _encode(lines: Sequence[Sequence[str]], vocabulary: Sequence[str]) -> np.ndarray:
    """(N,) word ids of all sentences one after the other, each between ``<s>`` and ``</s>``."""
    ids = {word: number for number, word in enumerate(vocabulary)}
    unknown, begin, end = (ids[word] for word in _SPECIALS)
    flat = (i for words in lines for i in (begin, *(ids.get(word, unknown) for word in words), end))
    return np.fromiter(flat, dtype=np.int64)


def _count(text: np.ndarray, order: int, vocabulary: int) -> list[Grams]:
    """The n-grams of each order with their counts a(h, w); probabilities are still empty.

    text: (N,) word ids. Every word of the vocabulary is a 1-gram, seen or not.
    """
    begins = text == _SPECIALS.index(BEGIN)
    starts = np.maximum.accumulate(np.where(begins, np.arange(len(text)), 0))
    depth = np.arange(len(text)) - starts  # words before this one in its sentence
    empty = np.empty(0)
    plain = np.bincount(text, minlength=vocabulary)
    zeros = np.zeros(vocabulary, dtype=np.int64)
    found = [Grams(np.arange(vocabulary), zeros, zeros, plain, empty, empty)]
    at = text  # (N,) index of the n-gram that ends here, for the longest n so far; -1 where the sentence is too short
    for number in range(2, order + 1):
        ends = np.flatnonzero(depth >= number - 1)
        pairs = at[ends - 1] * vocabulary + text[ends]  # below G * V, far from the limits of int64
        unique, first, inverse, counts = np.unique(pairs, return_index=True, return_inverse=True, return_counts=True)
        suffixes = at[ends[first]]
        found[-1] = _with_continuations(found[-1], suffixes)
        found.append(Grams(unique % vocabulary, unique // vocabulary, suffixes, counts, empty, empty))
        at = np.full(len(text), -1)
        at[ends] = inverse
    found[0].counts[_SPECIALS.index(BEGIN)] = 0  # <s> is given, never predicted
    return found


def _with_continuations(grams: Grams, suffixes: np.ndarray) -> Grams:
    """Lower orders count in how many words' company an n-gram ends; nothing stands before those that begin with <s>."""
    before = np.bincount(suffixes, minlength=len(grams.words))
    return replace(grams, counts=np.where(before > 0, before, grams.counts))


def _smooth(counted: Sequence[Grams], vocabulary: int) -> list[Grams]:
    """Probabilities and back-off weights, from the lowest order up."""
    smoothed: list[Grams] = []
    lower = np.full(1, 1.0 / (vocabulary - 1))  # below the unigrams: all words alike, <unk> and </s> too, <s> not
    for number, grams in enumerate(counted, 1):
        size = len(lower)
        total = np.bincount(grams.histories, grams.counts, minlength=size)
        discounts = _discounts(grams.counts, number)[np.minimum(grams.counts, 3)]
        freed = np.bincount(grams.histories, discounts, minlength=size)
        backoffs = np.divide(freed, total, out=np.ones(size), where=total > 0)
        probs = (grams.counts - discounts) / total[grams.histories] + backoffs[grams.histories] * lower[grams.suffixes]
        log_probs = np.log10(probs)
        if number == 1:
            log_probs[_SPECIALS.index(BEGIN)] = IMPOSSIBLE
        else:
            smoothed[-1] = replace(smoothed[-1], log_backoffs=np.log10(backoffs))
        smoothed.append(replace(grams, log_probs=log_probs, log_backoffs=np.zeros(len(probs))))
        lower = probs
    return smoothed


def _discounts(counts: np.ndarray, order: int) -> np.ndarray:
    """(4,) what is taken off counts of 0, 1, 2 and more (Chen and Goodman, equation 26)."""
    seen = np.bincount(counts[counts > 0], minlength=5)[:5].astype(float)  # seen[k]: n-grams with a count of k
    if (seen[1:4] > 0).all():
        share = seen[1] / (seen[1] + 2 * seen[2])
        wanted = [k - (k + 1) * share * seen[k + 1] / seen[k] for k in (1, 2, 3)]
        if all(0 < value <= k for k, value in enumerate(wanted, 1)):
            return np.array([0.0, *wanted])
    logging.warning("%d-grams: too few to estimate discounts from; they are %s", order, _FALLBACK)
    return np.array([0.0, *_FALLBACK])
