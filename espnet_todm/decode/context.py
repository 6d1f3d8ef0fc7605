"""The context for decoding: that of the configuration, complete utterances, or chunks of speech."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

from espnet_todm.encoders.chunks import Chunk, parse_chunk
from espnet_todm.encoders.stack import StackedEncoder
from espnet_todm.errors import UserError

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


def parse_context(words: Optional[Sequence[str]]) -> Optional[Context]:
    """Parse ``full``, or the numbers FRAMES LEFT: encoder frames of a chunk and of its left context. None stays None,
    the context of the configuration. Raises UserError for anything else.
    """
    if words is None:
        return None
    if list(words) == [WHOLE]:
        return Context(None)
    if len(words) != 2 or not all(word.isdecimal() for word in words) or int(words[0]) < 1:
        raise UserError(
            f"chunk: {' '.join(words)!r} is not possible; needed: frames of a chunk (1 or more) and of its left context"
            f" (0 or more), such as 16 64, or {WHOLE}"
        )
    return Context(parse_chunk([int(word) for word in words], "chunk"))
