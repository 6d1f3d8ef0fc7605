"""The context for decoding: that of the configuration, complete utterances, or chunks of speech."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

from espnet_todm.encoders.chunks import Chunk, parse_chunk
from espnet_todm.encoders.stack import StackedEncoder
from espnet_todm.errors import UserError
from espnet_todm.scoring.scores import DECODE

WHOLE = "full"


@dataclass(frozen=True)
class Context:
    """The context of attention in decoding. ``chunk``: None for complete utterances."""

    chunk: Optional[Chunk]

    @property
    def name(self) -> str:
        """Name for folders: "full", or frames and left context, "16_64"."""
        return WHOLE if self.chunk is None else f"{self.chunk.frames}_{self.chunk.left}"

    def apply(self, model: Any) -> None:
        """Set this context in a model's encoder, like ``encoder_conf: decode_chunk``.

        Raises UserError for a model that was not trained on chunks.
        """
        encoder = model.encoder
        if not isinstance(encoder, StackedEncoder) or encoder.chunk_options is None:
            given = self.name.replace("_", " ")
            raise UserError(f"chunk: {given} is for models trained with encoder_conf: chunk; leave it out for this one")
        encoder.decode_in(self.chunk)


def parse_contexts(words: Optional[Sequence[str]]) -> list[Optional[Context]]:
    """Parse one or more contexts in a row, as in ``full 32 64 16 64``. Each is ``full``, or the numbers FRAMES LEFT: encoder
    frames of a chunk and of its left context. None gives [None], the context of the configuration.

    Raises UserError for anything else.
    """
    if words is None:
        return [None]
    contexts: list[Optional[Context]] = []
    rest = list(words)
    while rest or not contexts:
        if rest[:1] == [WHOLE]:
            contexts.append(Context(None))
            del rest[:1]
            continue
        if len(rest) < 2 or not all(word.isdecimal() for word in rest[:2]) or int(rest[0]) < 1:
            raise UserError(
                f"chunk: {' '.join(words)!r} is not possible; needed: frames of a chunk (1 or more) and of its left"
                f" context (0 or more), such as 16 64, or {WHOLE}; also several of them"
            )
        contexts.append(Context(parse_chunk([int(word) for word in rest[:2]], "chunk")))
        del rest[:2]
    return contexts


def output_folders(contexts: Sequence[Optional[Context]], output: Optional[str] = None) -> list[str]:
    """The folder in the experiment for the texts of each context.

    output: the folder's name for one context, the beginning of the names for several. By default, the configuration's
    context has the folder ``decode``, and others have names such as decode_chunk_16_64.
    """
    if output is not None and len(contexts) == 1:
        return [output]
    return [(output or DECODE) + ("" if one is None else f"_chunk_{one.name}") for one in contexts]
