"""Tokens: those with a meaning of their own, which lists of them cannot be used, and which list a model was trained with.

That is on record beside a model, since weights of another list of the same length fit as well, and then write other words.

A training writes the record; going on with it and extracting from it compare. So does loading an extracted model, with the
record in its card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

from espnet_todm.errors import UserError
from espnet_todm.util.files import BYTE_ORDER_MARK, PathLike, hash_file, hash_text, read_json, write_json

RECORD = "vocabulary.json"
TOKENS, SENTENCEPIECE = "tokens.txt", "bpe.model"  # file names of stage 5
BLANK, UNKNOWN, SOS_EOS, SPACE = "<blank>", "<unk>", "<sos/eos>", "<space>"
WORD_MARK = "▁"  # sentencepiece begins words with it
_ALLOWED = "allowed: the tokens that the model was trained with"


def describe(tokens: Sequence[str], bpemodel: Optional[PathLike] = None) -> dict[str, Any]:
    """What a record says of a list of tokens and of the sentencepiece model that splits words into them."""
    model = {"bpemodel_sha256": hash_file(bpemodel)} if bpemodel else {}
    return {"size": len(tokens), "sha256": hash_text("\n".join(tokens)), **model}


def trained_tokens(tokens: Union[PathLike, Sequence[str]]) -> list[str]:
    """The option ``token_list`` as ESPnet's task reads it: a list as it is, of a file the lines without spaces behind.

    :func:`espnet_todm.lm.spelling.read_tokens` reads a file as ESPnet's converter of texts does, for which a token may be
    a kind of space. Raises UserError when the file is missing or not UTF-8.
    """
    if not isinstance(tokens, (str, Path)):
        return list(tokens)
    if not Path(tokens).is_file():
        raise UserError(f"token_list: {tokens}: no such file")
    try:
        with Path(tokens).open(encoding="utf-8") as lines:
            return [line.rstrip() for line in lines]
    except UnicodeDecodeError as error:
        raise UserError(f"token_list: {tokens}: not UTF-8 ({error})") from None


def check_marks(tokens: Sequence[str]) -> None:
    """Raises UserError for a list with two kinds of marks, in which nothing says where words begin, and for one that ESPnet
    read from a file with a byte order mark, which is part of the first token then."""
    if tokens and tokens[0].startswith(BYTE_ORDER_MARK):
        raise UserError(
            f"token_list: token 0 is {tokens[0]!r}; take the byte order mark out of the file (UTF-8 without BOM)"
        )
    marked = next((number for number, token in enumerate(tokens) if WORD_MARK in token), None)
    if marked is not None and SPACE in tokens:
        raise UserError(
            f"token_list: token {list(tokens).index(SPACE)} is {SPACE} and token {marked} is {tokens[marked]!r}; allowed:"
            f" {SPACE} (characters) or {WORD_MARK} (sentencepiece), not both"
        )


def check_tokens(tokens: Sequence[str]) -> None:
    """Raises UserError when a token stands twice, or there is no ``<blank>``: ESPnet would take the first token for it."""
    if BLANK not in tokens:
        raise UserError(f"token_list: has {len(tokens)} tokens, but no {BLANK}; it must be the first")
    if len(set(tokens)) < len(tokens):
        twice = next(token for token in tokens if tokens.count(token) > 1)
        raise UserError(f"token_list: {twice!r} stands twice; each token must be there once")


def write_record(folder: PathLike, tokens: Sequence[str], bpemodel: Optional[PathLike]) -> None:
    """Note the tokens that the training in ``folder`` uses."""
    write_json(Path(folder) / RECORD, describe(tokens, bpemodel))


def check_record(folder: PathLike, tokens: Sequence[str], bpemodel: Optional[PathLike], where: str) -> None:
    """Raises UserError when the training in ``folder`` used other tokens than ``where``, such as a file's name, has. A
    folder without a record passes: older releases wrote none."""
    record = Path(folder) / RECORD
    if record.is_file():
        stated = read_json(record)
        if not isinstance(stated, dict):
            raise UserError(f"{record}: damaged: no record of tokens; remove it if you know them to be the same")
        check_stated(stated, tokens, bpemodel, record, where)


def check_stated(
    stated: Mapping[str, Any], tokens: Sequence[str], bpemodel: Optional[PathLike], record: PathLike, where: str
) -> None:
    """Raises UserError when the file ``record`` states another list, or another sentencepiece model, than ``where`` has."""
    found = describe(tokens, bpemodel if "bpemodel_sha256" in stated else None)
    for key, what in (("size", "number of tokens"), ("sha256", "token list")):
        if stated.get(key) != found[key]:
            raise UserError(
                f"{where}: its {what} is not the one in {record} ({found[key]}, not {stated.get(key)}); {_ALLOWED}"
            )
    if found != {key: stated[key] for key in found}:
        raise UserError(f"{where}: {bpemodel} is not the sentencepiece model in {record}; {_ALLOWED}")


def check_same(before: Sequence[str], now: Sequence[str], where: str) -> None:
    """Raises UserError, naming the first token that differs, when two lists are not the same."""
    if list(before) == list(now):
        return
    place = next((n for n, (a, b) in enumerate(zip(before, now)) if a != b), min(len(before), len(now)))
    a, b = (repr(tokens[place]) if place < len(tokens) else "nothing" for tokens in (before, now))
    raise UserError(f"{where}: was trained with other tokens: number {place} was {a}, and is {b} now; {_ALLOWED}")
