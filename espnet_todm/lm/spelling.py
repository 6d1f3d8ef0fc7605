"""How tokens make words, and stage 9: the lexicon that says how each word of the language model is written in tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import sentencepiece

from espnet_todm.data.transcripts import composed
from espnet_todm.errors import UserError
from espnet_todm.lm.arpa import read_vocabulary
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


def make_lexicon(model: PathLike, tokens: PathLike, output: PathLike) -> Path:
    """Write ``lexicon.txt`` (a word and its tokens per line) of an ARPA file's words into the folder ``output``.

    tokens: the folder of stage 5. Words with characters that the tokens have not are left out, with a warning.
    Raises UserError when a file is missing, or when no word can be written.
    """
    files = sorted(path for path in Path(tokens).glob("*") if path.name in (TOKENS, SENTENCEPIECE))
    known = read_tokens(Path(tokens) / TOKENS)
    options = {"stage": "lexicon", "model": hash_file(model), "tokens": [hash_file(path) for path in files]}
    with atomic_stage(output, options) as folder:
        if folder is None:
            return Path(output)
        writer = _writer(Path(tokens), known)
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
    source = Path(path)
    if not source.is_file():
        raise UserError(f"lexicon: {source}: no such file; {_EXPECTED}")
    ids = {token: number for number, token in enumerate(tokens)}
    parts = word_parts(tokens)
    spellings = []
    for number, line in enumerate(read_lines(source), 1):
        word, *spelled = line.split() or [""]
        unknown = next((token for token in spelled if token not in ids), None)
        if unknown is not None:
            raise UserError(
                f"lexicon: {source}:{number}: token {unknown!r} of {word!r} is not in the model's token list"
            )
        made = "".join(parts[ids[token]].text for token in spelled)
        if not word or made != word:
            raise UserError(f"lexicon: {source}:{number}: the tokens make {made!r}, not {word!r}; {_EXPECTED}")
        spellings.append([ids[token] for token in spelled])
    if not spellings:
        raise UserError(f"lexicon: {source}: no words in it; {_EXPECTED}")
    return spellings


def _writer(folder: Path, tokens: Sequence[str]) -> Callable[[str], list[str]]:
    """Word -> tokens, by the model in the folder of stage 5, or by the list where there is none."""
    if (folder / SENTENCEPIECE).is_file():
        processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / SENTENCEPIECE))
        return lambda word: list(processor.encode(word, out_type=str))
    return list if SPACE in tokens else lambda word: [word]
