"""Alignment of a hypothesis with its reference by the costs of NIST sclite, which gives the same counts as sclite.

sclite finds the cheapest alignment, not the one with the fewest errors. A substitution costs 4, a deletion or an
insertion 3. The counts can therefore differ from those of the edit distance, even in their sum. By default, sclite also
ignores the case of letters: see ``fold_case``.
"""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_lowercase, ascii_uppercase
from typing import NamedTuple

from rapidfuzz.distance import Levenshtein

SUBSTITUTION, GAP = 4, 3

_FOLDED = str.maketrans(ascii_uppercase, ascii_lowercase)
_UNIT = 1 << 24
"""Larger than the errors of any utterance, so that cost * _UNIT + errors encodes both the cost and the errors."""


class Edits(NamedTuple):
    """Numbers of correct, substituted, deleted and inserted units of one utterance."""

    correct: int
    substitutions: int
    deletions: int
    insertions: int


def fold_case(text: str) -> str:
    """``text`` as sclite compares it without ``-s``: A to Z become a to z, all other letters are unchanged."""
    return text.translate(_FOLDED)


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> Edits:
    """Edits of sclite's alignment. ``reference`` and ``hypothesis`` are sequences of words or characters.

    The cost of the cheapest alignment and its number of errors determine all four counts. An alignment is traced only
    if cheapest alignments with different numbers of errors exist (3 substitutions cost as much as 4 gaps).
    """
    fewest, most = (_edits(reference, hypothesis, tie) for tie in (1, -1))
    return fewest if fewest == most else _trace(reference, hypothesis)


def _edits(reference: Sequence[str], hypothesis: Sequence[str], tie: int) -> Edits:
    """Edits of a cheapest alignment, with the fewest errors for ``tie`` = 1 and the most for -1."""
    gap, substitution = GAP * _UNIT + tie, SUBSTITUTION * _UNIT + tie
    distance = Levenshtein.distance(reference, hypothesis, weights=(gap, gap, substitution))
    cost = (distance + _UNIT // 2) // _UNIT
    errors = (distance - cost * _UNIT) * tie
    substitutions = cost - GAP * errors
    deletions = (errors - substitutions + len(reference) - len(hypothesis)) // 2
    insertions = errors - substitutions - deletions
    return Edits(len(reference) - substitutions - deletions, substitutions, deletions, insertions)


def _trace(reference: Sequence[str], hypothesis: Sequence[str]) -> Edits:
    """Edits of the cheapest alignment, traced from its end. Among equal steps the order is pair, insertion, deletion.

    This is sclite's order: of all six orders, it alone agrees with sclite on utterances where they differ.
    """
    rows = _costs(reference, hypothesis)
    correct = substitutions = deletions = insertions = 0
    i, j = len(reference), len(hypothesis)
    while i or j:
        same = i > 0 and j > 0 and reference[i - 1] == hypothesis[j - 1]
        if i and j and rows[i][j] == rows[i - 1][j - 1] + (0 if same else SUBSTITUTION):
            correct, substitutions = correct + same, substitutions + (not same)
            i, j = i - 1, j - 1
        elif j and rows[i][j] == rows[i][j - 1] + GAP:
            insertions, j = insertions + 1, j - 1
        else:
            deletions, i = deletions + 1, i - 1
    return Edits(correct, substitutions, deletions, insertions)


def _costs(reference: Sequence[str], hypothesis: Sequence[str]) -> list[list[int]]:
    """Cost of aligning each prefix of the reference (rows) with each prefix of the hypothesis (columns)."""
    rows = [[GAP * j for j in range(len(hypothesis) + 1)]]
    for unit in reference:
        above, left = rows[-1], rows[-1][0] + GAP
        row = [left]
        for j, other in enumerate(hypothesis):
            pair = above[j] if unit == other else above[j] + SUBSTITUTION
            left = min(pair, min(above[j + 1], left) + GAP)
            row.append(left)
        rows.append(row)
    return rows
