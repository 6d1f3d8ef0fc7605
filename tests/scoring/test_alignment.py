"""Counts against a brute force over all alignments, jiwer, and sclite itself where it is installed."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_todm.scoring.alignment import Edits, align, fold_case

WORDS = st.lists(st.sampled_from("abcd"), max_size=6)
SCLITE = shutil.which("sclite") or next((path for path in ("/usr/lib/sctk/bin/sclite",) if Path(path).exists()), None)


def cost(edits: Edits) -> int:
    return 4 * edits.substitutions + 3 * (edits.deletions + edits.insertions)


def all_alignments(reference: tuple[str, ...], hypothesis: tuple[str, ...]) -> set[Edits]:
    @cache
    def ends(i: int, j: int) -> frozenset[Edits]:
        if i == 0 and j == 0:
            return frozenset([Edits(0, 0, 0, 0)])
        found: set[Edits] = set()
        if i and j:
            same = reference[i - 1] == hypothesis[j - 1]
            found |= {
                e._replace(correct=e.correct + same, substitutions=e.substitutions + (not same))
                for e in ends(i - 1, j - 1)
            }
        if i:
            found |= {e._replace(deletions=e.deletions + 1) for e in ends(i - 1, j)}
        if j:
            found |= {e._replace(insertions=e.insertions + 1) for e in ends(i, j - 1)}
        return frozenset(found)

    return set(ends(len(reference), len(hypothesis)))


@given(WORDS, WORDS)
def test_no_alignment_is_cheaper_and_this_one_exists(reference: list[str], hypothesis: list[str]) -> None:
    possible = all_alignments(tuple(reference), tuple(hypothesis))
    found = align(reference, hypothesis)
    assert found in possible
    assert cost(found) == min(map(cost, possible))


@given(WORDS, WORDS)
def test_counts_add_up(reference: list[str], hypothesis: list[str]) -> None:
    found = align(reference, hypothesis)
    assert min(found) >= 0
    assert found.correct + found.substitutions + found.deletions == len(reference)
    assert found.correct + found.substitutions + found.insertions == len(hypothesis)


@given(WORDS)
def test_identical_text_has_no_errors(words: list[str]) -> None:
    assert align(words, words) == (len(words), 0, 0, 0)
    assert align("".join(words), "".join(words)) == (len(words), 0, 0, 0)


def noisy_pairs(count: int) -> list[tuple[list[str], list[str]]]:
    """Utterances of 1 to 25 words from small vocabularies, some with a little noise and some wholly wrong."""
    draw = random.Random(5)
    pairs = []
    for _ in range(count):
        vocabulary = "abcdefghijklmnopqrstuvwxyz"[: draw.choice([2, 3, 8, 26])]
        reference = draw.choices(vocabulary, k=draw.randint(1, 25))
        if draw.random() < 0.3:
            pairs.append((reference, draw.choices(vocabulary, k=draw.randint(0, 25))))
            continue
        kept = [draw.choice(vocabulary) if draw.random() < 0.15 else word for word in reference if draw.random() < 0.9]
        pairs.append((reference, kept + draw.choices(vocabulary, k=draw.choice([0, 0, 1, 2]))))
    return pairs


def test_close_to_the_plain_edit_distance() -> None:
    pairs = noisy_pairs(300)
    ours = [sum(align(*pair)[1:]) for pair in pairs]
    plain = [jiwer.process_words(" ".join(reference), " ".join(hypothesis)) for reference, hypothesis in pairs]
    fewest = [found.substitutions + found.deletions + found.insertions for found in plain]
    assert all(our >= few for our, few in zip(ours, fewest))
    assert sum(our == few for our, few in zip(ours, fewest)) > 280


def cased(words: list[str], draw: random.Random) -> list[str]:
    """Words with letters of either case, some of which are not ASCII."""
    return [draw.choice((word, word.upper(), f"{word}é", f"{word}É", f"ß{word}")) for word in words]


@pytest.mark.skipif(SCLITE is None, reason="sclite (NIST SCTK) is not installed")
@pytest.mark.parametrize("options", [[], ["-s"]])
def test_sclite_looks_at_case_alike(tmp_path: Path, options: list[str]) -> None:
    draw = random.Random(7)
    pairs = [(cased(one, draw), cased(other, draw)) for one, other in noisy_pairs(500)]
    folded = [[fold_case(" ".join(side)).split() for side in pair] for pair in pairs]
    assert counts_of_sclite(tmp_path, pairs, options) == [align(*pair) for pair in (pairs if options else folded)]


@pytest.mark.skipif(SCLITE is None, reason="sclite (NIST SCTK) is not installed")
def test_every_count_is_sclites(tmp_path: Path) -> None:
    pairs = noisy_pairs(2000)
    assert counts_of_sclite(tmp_path, pairs, []) == [align(*pair) for pair in pairs]


def counts_of_sclite(
    tmp_path: Path, pairs: list[tuple[list[str], list[str]]], options: list[str]
) -> list[tuple[int, ...]]:
    for side, name in enumerate(("reference", "hypothesis")):
        lines = (f"{' '.join(pair[side])} (speaker-{index:05d})\n" for index, pair in enumerate(pairs))
        (tmp_path / name).write_text("".join(lines), encoding="utf-8")
    command = [
        str(SCLITE),
        "-r",
        "reference",
        "trn",
        "-h",
        "hypothesis",
        "trn",
        "-i",
        "rm",
        "-o",
        "pra",
        "-n",
        "out",
        *options,
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    text = (tmp_path / "out.pra").read_text(encoding="utf-8")
    pattern = r"id: \(speaker-(\d+)\)\s+Scores: \(#C #S #D #I\) (\d+) (\d+) (\d+) (\d+)"
    found = {int(index): tuple(map(int, counts)) for index, *counts in re.findall(pattern, text)}
    assert len(found) == len(pairs)
    return [found[index] for index in range(len(pairs))]
