"""Phoneme targets: a pronunciation lexicon, and text in its phonemes with the last one of each word marked.

The marking is that of the OrthoSoftmax experiments (end-of-word phonemes): with ARPAbet's 39 phonemes a model has 78
targets and the blank. ESPnet's ``token_type: word`` reads such text, one phoneme a word.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from espnet_todm.data.transcripts import plain_text
from espnet_todm.errors import UserError
from espnet_todm.util.checks import check_number
from espnet_todm.util.files import PathLike, hash_file, read_lines, read_table, write_table, write_text
from espnet_todm.util.stage_marker import atomic_stage, fingerprint
from espnet_todm.util.vocabulary import BLANK, SOS_EOS, SPACE, TOKENS, UNKNOWN, WORD_MARK

END_OF_WORD = "#"
_WORDS_SHOWN = 5
_COMMENT = ";;;"
_NO_PHONEMES = (BLANK, UNKNOWN, SOS_EOS, SPACE)
_STRESSED = re.compile("(A[AEHOWXY]|AXR|E[HRY]|I[HXY]|O[WY]|U[HWX])[012]")  # ARPAbet's vowels
_NEARLY_EVERY = 0.9
Lexicon = Mapping[str, tuple[str, ...]]  # word in lower case -> the phonemes of its first pronunciation


class _Entry(NamedTuple):
    where: str
    word: str
    phonemes: Sequence[str]


def read_lexicon(path: PathLike) -> dict[str, tuple[str, ...]]:
    """Read ``word phoneme...`` lines: Kaldi's lexicon.txt, CMUdict, LibriSpeech's or TED-LIUM's dictionary, in any alphabet
    of phonemes.

    Of several pronunciations (a word again, or ``word(2)``) the first is kept. Case of words is dropped, and so are stress
    marks (AH0) where ARPAbet's vowels alone have them, for elsewhere they are tones; ``;;;`` lines and what follows a `` #``
    are comments. Raises UserError, naming the line, for one without phonemes or with an impossible one, for probabilities
    (lexiconp.txt), and for a file without words.
    """
    if not str(path) or not Path(path).is_file():
        raise UserError(f"lexicon: {str(path)!r} is no file; a table of words and their phonemes is expected")
    entries: list[_Entry] = []
    for number, line in enumerate(read_lines(path), 1):
        word, *phonemes = re.sub(r"\s#.*$", "", plain_text(line)).split() or [_COMMENT]
        if not word.startswith(_COMMENT):
            _check_phonemes(phonemes, f"{path}:{number}")
            entries.append(_Entry(f"{path}:{number}", re.sub(r"\(\d+\)$", "", word).lower(), phonemes))
    if not entries:
        raise UserError(f"{path}: no words in it; a line is a word and its phonemes")
    _refuse_probabilities(entries)
    marked = {one for entry in entries for one in entry.phonemes if re.fullmatch(r"[A-Z]+\d", one)}
    stress = marked if all(map(_STRESSED.fullmatch, marked)) else set()
    lexicon: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        lexicon.setdefault(entry.word, tuple(one[:-1] if one in stress else one for one in entry.phonemes))
    return lexicon


def _check_phonemes(phonemes: Sequence[str], where: str) -> None:
    if not phonemes:
        raise UserError(f"{where}: no phonemes; a line is a word and its phonemes")
    for one in phonemes:
        if one.endswith(END_OF_WORD) or one in _NO_PHONEMES or WORD_MARK in one:
            raise UserError(f"{where}: {one!r} is no phoneme, because it has a meaning of its own among tokens")


def _refuse_probabilities(entries: Sequence[_Entry]) -> None:
    """Numbers right behind the words: a fraction in any line, or 0 or 1 and phonemes in nearly every one. Elsewhere ``2``,
    ``9`` and ``e`` are phonemes, as in X-SAMPA."""
    fractions = [entry for entry in entries if re.fullmatch(r"\d*\.\d+(e-?\d+)?|\de-\d+", entry.phonemes[0])]
    whole = [entry for entry in entries if entry.phonemes[0] in ("0", "1") and len(entry.phonemes) > 1]
    if fractions or len(whole) > _NEARLY_EVERY * len(entries):
        first = (fractions or whole)[0]
        raise UserError(
            f"{first.where}: {first.phonemes[0]!r} is no phoneme; a line is a word and its phonemes, without probabilities"
            " (Kaldi's lexicon.txt, not lexiconp.txt)"
        )


def inventory(lexicon: Lexicon) -> list[str]:
    """All phonemes of a lexicon, each plain and as the last of a word, sorted."""
    plain = {phoneme for phonemes in lexicon.values() for phoneme in phonemes}
    return sorted(plain | {phoneme + END_OF_WORD for phoneme in plain})


def spell(words: Iterable[str], lexicon: Lexicon) -> list[str]:
    """Words -> phonemes, the last of each word marked; a word that the lexicon has not becomes ``<unk>``."""
    spelled: list[str] = []
    for word in words:
        phonemes = lexicon.get(word.lower())
        spelled += [*phonemes[:-1], phonemes[-1] + END_OF_WORD] if phonemes else [UNKNOWN]
    return spelled


def spell_table(texts: Mapping[str, str], lexicon: Lexicon, max_unknown_share: float, name: str) -> dict[str, str]:
    """A table of words -> a table of phonemes; ``name`` says in messages which.

    Raises UserError, naming the most frequent words, when a larger share of the words is not in the lexicon.
    """
    counts = Counter(word.lower() for text in texts.values() for word in text.split())
    unknown = Counter({word: count for word, count in counts.items() if word not in lexicon})
    missing, total = sum(unknown.values()), sum(counts.values())
    if missing:
        shown = ", ".join(f"{word} ({count})" for word, count in unknown.most_common(_WORDS_SHOWN))
        found = f"{name}: {missing} of {total} words ({missing / total:.2%}) are not in the lexicon: {shown}"
        if missing > max_unknown_share * total:
            raise UserError(f"{found}; max_unknown_share is {max_unknown_share:.2%}")
        logging.warning("%s; they become %s", found, UNKNOWN)
    return {utterance: " ".join(spell(text.split(), lexicon)) for utterance, text in texts.items()}


def make_phonemes(
    lexicon: PathLike, data: PathLike, splits: Sequence[str], output: PathLike, max_unknown_share: float = 0.01
) -> Path:
    """Write ``tokens.txt`` and ``<split>/text`` in phonemes, from ``data``/``<split>``/text in words, into ``output``.

    tokens.txt holds ESPnet's special tokens and the whole lexicon's phonemes, so it does not depend on the text.
    Raises UserError for an unusable lexicon and for too many words that it has not.
    """
    check_number("max_unknown_share", max_unknown_share, at_least=0, at_most=1)
    known = read_lexicon(lexicon)
    inputs = {split: fingerprint(Path(data) / split) for split in splits}
    options = {
        "stage": "phonemes",
        "lexicon": hash_file(lexicon),
        "max_unknown_share": max_unknown_share,
        "input": inputs,
    }
    with atomic_stage(output, options) as folder:
        if folder is None:
            return Path(output)
        tokens = [BLANK, UNKNOWN, *inventory(known), SOS_EOS]
        write_text(folder / TOKENS, "".join(f"{token}\n" for token in tokens))
        for split in splits:
            texts = read_table(Path(data) / split / "text")
            write_table(folder / split / "text", spell_table(texts, known, max_unknown_share, split))
    logging.info("%s: %d tokens from a lexicon of %d words", output, len(tokens), len(known))
    return Path(output)
