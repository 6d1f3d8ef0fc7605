"""The folder of an exported model as runtimes read it: which files it has, and its tokens.txt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_todm.errors import UserError
from espnet_todm.util.files import PathLike, read_lines
from espnet_todm.util.vocabulary import WORD_MARK

CTC, TRANSDUCER = "ctc", "transducer"
PARTS = {CTC: ("model",), TRANSDUCER: ("encoder", "decoder", "joiner")}
PRECISIONS = {"fp32": ".onnx", "int8": ".int8.onnx", "fp16": ".fp16.onnx"}
TOKENS = "tokens.txt"
FOLDER = "onnx"  # where an export goes, inside the folder of its size
STREAMING_FOLDER = "streaming-onnx"  # and that of a streaming model
BLANKS = ("<blk>", "<eps>", "<blank>")  # names by which sherpa-onnx knows a blank


@dataclass(frozen=True)
class OnnxFolder:
    """kind: CTC (one graph) or TRANSDUCER (three). parts: file of each graph in one precision. tokens: by their ids."""

    path: Path
    precision: str
    kind: str
    parts: dict[str, Path]
    tokens: list[str]


def read_onnx_folder(folder: PathLike, precision: str = "fp32") -> OnnxFolder:
    """Raises UserError when a file is missing, tokens.txt is wrong, or the precision is unknown or not there."""
    kind, parts = find_parts(folder, precision)
    return OnnxFolder(Path(folder), precision, kind, parts, read_tokens(Path(folder) / TOKENS))


def find_parts(folder: PathLike, precision: str = "fp32") -> tuple[str, dict[str, Path]]:
    """The kind of model and the file of each of its graphs. Raises UserError when one is missing."""
    path = Path(folder)
    if precision not in PRECISIONS:
        raise UserError(f"precision: {precision!r} is unknown; allowed: {', '.join(PRECISIONS)}")
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; python -m espnet_todm.bin.export makes it")
    kind = TRANSDUCER if any(path.glob("encoder*.onnx")) else CTC
    parts = {part: path / f"{part}{PRECISIONS[precision]}" for part in PARTS[kind]}
    for file in parts.values():
        if not file.is_file():
            there = [name for name, end in PRECISIONS.items() if (path / f"{PARTS[kind][0]}{end}").is_file()]
            raise UserError(f"{file}: no such file; the folder has precision: {', '.join(there) or 'none at all'}")
    return kind, parts


def read_tokens(path: PathLike) -> list[str]:
    """Symbols of a tokens.txt (``symbol id`` in each line) by their ids. A line with an id only stands for a space.

    Raises UserError when there is no such file, a line is something else, or the ids are not 0, 1, 2, ... once each.
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
    """A line's words as sherpa-onnx has them: other spaces than ASCII's, such as the no-break space, are characters."""
    return re.findall(r"[^ \t\n\v\f\r]+", line)


def join_tokens(symbols: Sequence[str]) -> str:
    """Text of symbols, as sherpa-onnx puts it together (:mod:`espnet_todm.deploy.onnx.tokens`); single spaces between
    words."""
    return " ".join("".join(" " + one[1:] if one.startswith(WORD_MARK) else one for one in symbols).split())
