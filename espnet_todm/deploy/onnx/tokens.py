"""tokens.txt as sherpa-onnx reads it: lines ``symbol id``, split at ASCII white space.

sherpa-onnx joins symbols to text and replaces ``▁`` at the beginning of a symbol by a space. It does not replace ``▁``
elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from espnet_todm.decode.text import WORD_TYPES
from espnet_todm.deploy.onnx.folder import split_line
from espnet_todm.errors import UserError
from espnet_todm.util.vocabulary import SOS_EOS, SPACE, UNKNOWN, WORD_MARK, check_marks

BLANK = "<blk>"  # sherpa-onnx ends the whole process without a token of this name
TOKEN_TYPES = ("bpe", "char", *WORD_TYPES)  # types whose tokens the runtime can join to text
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a piece of sentencepiece's byte_fallback


def runtime_tokens(tokens: Sequence[str], blank: int, token_type: str) -> list[str]:
    """The runtime's names of the model's tokens. The blank becomes ``<blk>``. ESPnet's ``<space>`` becomes ``▁``, because a
    line of the file cannot hold a space. Tokens that are words get ``▁`` in front.

    Raises UserError for a token that the file cannot hold, or whose text in the runtime would differ from training.
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
    """The content of tokens.txt."""
    return "".join(f"{name} {number}\n" for number, name in enumerate(names))


def _name(token: str, token_type: str) -> str:
    """The runtime's name of a token other than the blank. ``<unk>`` and ``<sos/eos>``, which are never output, keep their
    names, because sherpa-onnx looks for ``<unk>``."""
    if token_type in WORD_TYPES:
        return token if token in (UNKNOWN, SOS_EOS) else WORD_MARK + token
    return WORD_MARK if token == SPACE else token
