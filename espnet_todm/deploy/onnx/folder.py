"""The folder of an exported model: names of its files, and its tokens.txt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from espnet_todm.errors import UserError
from espnet_todm.util.files import PathLike, read_lines
from espnet_todm.util.vocabulary import WORD_MARK

PRECISIONS = {"fp32": ".onnx", "int8": ".int8.onnx", "fp16": ".fp16.onnx"}
TOKENS = "tokens.txt"
FOLDER = "onnx"  # subfolder of a size for its export
STREAMING_FOLDER = "streaming-onnx"  # subfolder for the streaming export
CARD_DIGEST = "todm_card_sha256"  # metadata of a graph: SHA-256 of the card of the size that it was made from
BLANKS = ("<blk>", "<eps>", "<blank>")  # names that sherpa-onnx recognises as blank


def read_tokens(path: PathLike) -> list[str]:
    """Symbols of a tokens.txt (lines ``symbol id``) in the order of ids. A line with only an id means a space.

    Raises UserError when the file does not exist, a line has another format, or the ids are not 0, 1, 2, ... once each.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    symbols: dict[int, str] = {}
    for number, line in enumerate(read_lines(path), 1):
        words = split_line(line)
        if not 1 <= len(words) <= 2 or not words[-1].isdecimal():
            raise UserError(f"{path}:{number}: {line!r} is no token; each line must be a symbol and its id")
        identity = int(words[-1])
        if identity in symbols:
            raise UserError(f"{path}:{number}: id {identity} stands twice ({symbols[identity]!r} and {line!r})")
        symbols[identity] = words[0] if len(words) == 2 else " "
    missing = next((i for i in range(len(symbols)) if i not in symbols), None)
    if missing is not None or not symbols:
        raise UserError(f"{path}: has {len(symbols)} tokens, but none with id {missing or 0}; ids must be 0, 1, 2, ...")
    return [symbols[i] for i in range(len(symbols))]


def split_line(line: str) -> list[str]:
    """Split a line at ASCII white space, as sherpa-onnx does. Other spaces, such as the no-break space, do not split."""
    return re.findall(r"[^ \t\n\v\f\r]+", line)


def join_tokens(symbols: Sequence[str]) -> str:
    """Join symbols to text, as sherpa-onnx does (:mod:`espnet_todm.deploy.onnx.tokens`), with single spaces between
    words."""
    return " ".join("".join(" " + one[1:] if one.startswith(WORD_MARK) else one for one in symbols).split())
