"""Which tokens are text, and what tokens say: one rule for decoding, runtimes and exports.

``<unk>`` and ``<sos/eos>`` are never written where another token can be: their logits are next to impossible before a search
sees them, so that the next best token, or the blank, stands in their place. Exported graphs have that in their output layer.
(sherpa-onnx by itself takes a transducer's ``<unk>`` for a blank and prints that of CTC; stock ``asr_inference`` prints it.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from espnet2.text.build_tokenizer import build_tokenizer
from torch import Tensor, nn

from espnet_todm.util.vocabulary import SPACE, UNKNOWN

# A logit that no search picks. Finite, since beam searches subtract scores, and a number that float16 has.
NEVER = -1e4
_MARK = re.compile("<.+>")
WORD_TYPES = ("word", "phn")  # token types of which each token is a word of the text: words themselves, or phonemes


def forbidden_tokens(model: Any) -> list[int]:
    """Tokens that are no text: ``<unk>`` and ``<sos/eos>``, in the order of their numbers.

    ESPnet takes the last token for ``<sos/eos>`` where a list has none. That is text, unless its name is that of a mark.
    """
    tokens = model.token_list
    unknown = [number for number, token in enumerate(tokens) if token == UNKNOWN]
    ends = [number for number in (model.sos, model.eos) if _MARK.fullmatch(tokens[number]) and tokens[number] != SPACE]
    return sorted({*unknown, *ends} - {model.blank_id})


def only_text(logits: Tensor, forbidden: Sequence[int]) -> Tensor:
    """Logits (..., V), changed in place, with NEVER for tokens that are no text."""
    logits[..., list(forbidden)] = NEVER
    return logits


class TextJoint(nn.Module):
    """A joiner as searches call it, whose logits (..., V) are those of text alone."""

    def __init__(self, joint: nn.Module, forbidden: Sequence[int]) -> None:
        super().__init__()
        self.joint, self.forbidden = joint, list(forbidden)

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        return only_text(self.joint(*inputs, **options), self.forbidden)


class Spelling:
    """Tokens and text, as a training config has them: ``token_type`` and ``bpemodel``."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.words = config["token_type"] in WORD_TYPES
        self._tokenizer = build_tokenizer(token_type=config["token_type"], bpemodel=config.get("bpemodel"))

    def tokens(self, text: str) -> list[str]:
        return list(self._tokenizer.text2tokens(text))

    def text(self, tokens: Sequence[str]) -> str:
        """Of WORD_TYPES spaces stand between all tokens: ESPnet joins phonemes without any."""
        return " ".join(tokens) if self.words else str(self._tokenizer.tokens2text(tokens)).strip()
