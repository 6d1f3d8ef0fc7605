"""tokens.txt as sherpa-onnx reads it: ``symbol id`` per line, split at ASCII's white space.

Its texts are the symbols one after the other, where ``▁`` at the beginning of a symbol is a space. ``▁`` anywhere else it
writes as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from espnet_todm.decode.text import WORD_TYPES
from espnet_todm.deploy.onnx.folder import split_line
from espnet_todm.errors import UserError
from espnet_todm.util.vocabulary import SOS_EOS, SPACE, UNKNOWN, WORD_MARK, check_marks

BLANK = "<blk>"  # without a token of this name sherpa-onnx ends the whole process
TOKEN_TYPES = ("bpe", "char", *WORD_TYPES)  # whose texts the runtime can put together
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a piece of sentencepiece's byte_fallback


def runtime_tokens(tokens: Sequence[str], blank: int, token_type: str) -> list[str]:
    """The model's tokens under the runtime's names: the blank is ``<blk>``, ESPnet's ``<space>`` the mark of a word's start,
    for a space itself cannot stand on a line of the file; that mark also stands before every token that is a word.

    Raises UserError for a token that no line can hold or that the runtime would write in another way than training did.
    """
    if token_type not in TOKEN_TYPES:
        raise UserError(f"token_type: {token_type!r} cannot be exported; allowed: {', '.join(TOKEN_TYPES)}")
    if token_type not in WORD_TYPES:
        check_marks(tokens)
    names: list[str] = []
    for number, token in enumerate(tokens):
        if split_line(token) != [token]:
            raise UserError(f"token_list: token {number} is {token!r}, but tokens.txt cannot hold white space")
        if number != blank and token == BLANK:
            raise UserError(f"token_list: token {number} is {BLANK}, but token {blank} is the blank")
        if token_type == "bpe" and (WORD_MARK in token[1:] or _BYTE.fullmatch(token)):
            raise UserError(
                f"token_list: token {number} is {token!r}, which runtimes write as it stands; needed: {WORD_MARK} only at"
                " the beginning of a token, and a sentencepiece model without byte_fallback"
            )
        names.append(BLANK if number == blank else _name(token, token_type))
    places: dict[str, int] = {}
    for number, name in enumerate(names):
        first = places.setdefault(name, number)
        if first != number:
            raise UserError(
                f"token_list: tokens {first} and {number} ({tokens[first]!r} and {tokens[number]!r}) are both {name!r} on"
                " the device; needed: tokens that differ there"
            )
    return names


def tokens_text(names: Sequence[str]) -> str:
    """What the file holds."""
    return "".join(f"{name} {number}\n" for number, name in enumerate(names))


def _name(token: str, token_type: str) -> str:
    """Of a token that is no blank. ``<unk>`` and ``<sos/eos>``, which are never written, keep their names: sherpa-onnx
    knows the first by it."""
    if token_type in WORD_TYPES:
        return token if token in (UNKNOWN, SOS_EOS) else WORD_MARK + token
    return WORD_MARK if token == SPACE else token
