"""tokens.txt as sherpa-onnx reads it: ``symbol id`` per line, split at white space."""

from __future__ import annotations

from collections.abc import Sequence

from espnet_todm.data.spelling import check_marks
from espnet_todm.data.tokens import SPACE
from espnet_todm.errors import UserError

BLANK = "<blk>"  # without a token of this name sherpa-onnx ends the whole process
WORD_START = "▁"  # becomes a space in a text


def runtime_tokens(tokens: Sequence[str], blank: int) -> list[str]:
    """The model's tokens under the runtime's names: the blank is ``<blk>``, ESPnet's ``<space>`` the mark of a word's start,
    for a space itself cannot stand on a line of the file. Raises UserError for a token that no line can hold, and for
    a list that has both."""
    check_marks(tokens)
    names = []
    for number, token in enumerate(tokens):
        if not token or token.split() != [token]:
            raise UserError(f"token_list: token {number} is {token!r}, but tokens.txt cannot hold white space")
        if number != blank and token == BLANK:
            raise UserError(f"token_list: token {number} is {BLANK}, but token {blank} is the blank")
        names.append(BLANK if number == blank else WORD_START if token == SPACE else token)
    return names


def tokens_text(names: Sequence[str]) -> str:
    """What the file holds."""
    return "".join(f"{name} {number}\n" for number, name in enumerate(names))
