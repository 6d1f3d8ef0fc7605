"""How tokens make words, and stage 9: the lexicon that says how each word of the language model is written in tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

import sentencepiece

from espnet_todm.data.transcripts import composed
from espnet_todm.errors import UserError
from espnet_todm.lm.arpa import read_vocabulary
from espnet_todm.lm.lexicon import END_OF_WORD, read_lexicon, spell
from espnet_todm.util.files import PathLike, hash_file, read_lines, write_text
from espnet_todm.util.stage_marker import atomic_stage
from espnet_todm.util.vocabulary import SENTENCEPIECE, SPACE, TOKENS, WORD_MARK, check_marks

LEXICON = "lexicon.txt"
_EXPECTED = "a line is a word and its tokens"


class Part(NamedTuple):
    """What a token does: ``begins``: the word before it has ended; ``text``: what it adds to the word that it is in."""

    begins: bool
    text: str


def word_parts(tokens: Sequence[str]) -> list[Part]:
    """One part for each token of a list: of sentencepiece, of characters with a space, or of whole words.

    Raises UserError for a list of several kinds.
    """
    check_marks(tokens)
    if any(token.startswith(WORD_MARK) for token in tokens):
        return [Part(token.startswith(WORD_MARK), token.removeprefix(WORD_MARK)) for token in tokens]
    if SPACE in tokens:
        return [Part(True, "") if token == SPACE else Part(False, token) for token in tokens]
    return [Part(True, token) for token in tokens]


def read_tokens(path: PathLike) -> list[str]:
    """The tokens of a list in its order. Raises UserError when the file is missing or empty."""
    source = Path(path)
    if not source.is_file():
        raise UserError(f"{source}: no such file; run stage 5 (tokens) first")
    tokens = [line[:1] + line[1:].rstrip() for line in read_lines(source)]  # as ESPnet; a token may be a kind of space
    if not tokens:
        raise UserError(f"{source}: no tokens in it")
    return tokens


def make_lexicon(
    model: PathLike, tokens: PathLike, output: PathLike, pronunciations: Optional[PathLike] = None
) -> Path:
    """Write ``lexicon.txt`` (a word and its tokens per line) of an ARPA file's words into the folder ``output``.

    tokens: the folder of stage 5. pronunciations: for tokens that are phonemes and a model of words, the table of words and
    their phonemes. Words that the tokens cannot write are left out, with a warning.
    Raises UserError when a file is missing, or when no word can be written.
    """
    files = sorted(path for path in Path(tokens).glob("*") if path.name in (TOKENS, SENTENCEPIECE))
    known = read_tokens(Path(tokens) / TOKENS)
    options = {"stage": "lexicon", "model": hash_file(model), "tokens": [hash_file(path) for path in files]}
    if pronunciations:
        options["pronunciations"] = hash_file(pronunciations)
    with atomic_stage(output, options) as folder:
        if folder is None:
            return Path(output)
        writer = _speaker(pronunciations) if pronunciations else _writer(Path(tokens), known)
        words = list(dict.fromkeys(map(composed, read_vocabulary(model))))
        spelled = {word: writer(word) for word in words}
        one_word = {word: of for word, of in spelled.items() if of and word.split() == [word]}  # no kind of space in it
        lines = [f"{word} {' '.join(of)}\n" for word, of in one_word.items() if set(of) <= set(known)]
        if not lines:
            raise UserError(f"lexicon: none of {model}'s {len(words)} words can be written in the tokens of {tokens}")
        if len(lines) < len(words):
            logging.warning(
                "%s: %d of %d words cannot be written in the tokens", output, len(words) - len(lines), len(words)
            )
        write_text(folder / LEXICON, "".join(lines))
    return Path(output)


def read_spellings(path: PathLike, tokens: Sequence[str]) -> list[list[int]]:
    """Token ids of each line of a lexicon. A word may have several lines.

    Raises UserError, naming the line, for a token that is not in the list and for tokens that do not make the word.
    """
    parts, spellings = word_parts(tokens), []
    for where, word, spelled in _read_lines(path, tokens):
        made = "".join(parts[token].text for token in spelled)
        if not word or made != word:
            raise UserError(f"lexicon: {where}: the tokens make {made!r}, not {word!r}; {_EXPECTED}")
        spellings.append(spelled)
    return spellings


def holds_pronunciations(path: PathLike, tokens: Sequence[str]) -> bool:
    """Whether a lexicon is of words in phonemes. Else its words are what its tokens make, which may be phonemes themselves.

    Raises UserError when the file is missing or empty, and for a token that is not in the list.
    """
    if SPACE in tokens or any(WORD_MARK in token for token in tokens):
        return False
    _, word, spelled = next(_read_lines(path, tokens))
    return bool(spelled) and tokens[spelled[-1]].endswith(END_OF_WORD) and [tokens[one] for one in spelled] != [word]


def read_pronunciations(path: PathLike, tokens: Sequence[str]) -> list[tuple[str, list[int]]]:
    """(word, phoneme ids) of each line of a lexicon of words in phonemes, the last of each word marked.

    Raises UserError, naming the line, for a token that is not in the list and for a mark that is missing or too early.
    """
    found = []
    for where, word, spelled in _read_lines(path, tokens):
        marks = [tokens[one].endswith(END_OF_WORD) for one in spelled]
        if not marks or marks != [False] * (len(marks) - 1) + [True]:
            raise UserError(
                f"lexicon: {where}: {' '.join(tokens[one] for one in spelled)!r} must have the mark {END_OF_WORD} at"
                " its last phoneme, and only there"
            )
        found.append((word, spelled))
    return found


def _read_lines(path: PathLike, tokens: Sequence[str]) -> Iterator[tuple[str, str, list[int]]]:
    """(place, word, token ids) of each line. Raises UserError for a missing or empty file and for an unknown token."""
    source = Path(path)
    if not source.is_file():
        raise UserError(f"lexicon: {source}: no such file; {_EXPECTED}")
    ids = {token: number for number, token in enumerate(tokens)}
    empty = True
    for number, line in enumerate(read_lines(source), 1):
        word, *spelled = line.split() or [""]
        unknown = next((token for token in spelled if token not in ids), None)
        if unknown is not None:
            raise UserError(
                f"lexicon: {source}:{number}: token {unknown!r} of {word!r} is not in the model's token list"
            )
        yield f"{source}:{number}", word, [ids[token] for token in spelled]
        empty = False
    if empty:
        raise UserError(f"lexicon: {source}: no words in it; {_EXPECTED}")


def _speaker(pronunciations: PathLike) -> Callable[[str], list[str]]:
    """Word -> phonemes, none for a word that is not in the table."""
    known = read_lexicon(pronunciations)
    return lambda word: spell([word], known) if word.lower() in known else []


def _writer(folder: Path, tokens: Sequence[str]) -> Callable[[str], list[str]]:
    """Word -> tokens, by the model in the folder of stage 5, or by the list where there is none."""
    if (folder / SENTENCEPIECE).is_file():
        processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / SENTENCEPIECE))
        return lambda word: list(processor.encode(word, out_type=str))
    return list if SPACE in tokens else lambda word: [word]
