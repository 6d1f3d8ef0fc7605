"""Which tokens are text, and how tokens become text: the same rules for decoding, runtimes and exports.

``<unk>`` and ``<sos/eos>`` are never written if another token is possible. Their logits are set to a very low value
before the search, so the next best token, or the blank, replaces them. Exported graphs do this in their output layer.
(Without this, sherpa-onnx treats ``<unk>`` of a transducer as blank and prints that of CTC; stock ``asr_inference``
prints it.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from espnet2.text.build_tokenizer import build_tokenizer
from torch import Tensor, nn

from espnet_todm.util.vocabulary import SPACE, UNKNOWN

# A logit that no search picks. It is finite, since beam searches subtract scores, and within the range of float16.
NEVER = -1e4
_MARK = re.compile("<.+>")
WORD_TYPES = ("word", "phn")  # token types whose tokens are words of the text: words, or phonemes


def forbidden_tokens(model: Any) -> list[int]:
    """Tokens that are not text: ``<unk>`` and ``<sos/eos>``, in the order of their numbers.

    If a list has no ``<sos/eos>``, ESPnet uses the last token for it. That token is text, unless it has the form
    ``<...>``.
    """
    tokens = model.token_list
    unknown = [number for number, token in enumerate(tokens) if token == UNKNOWN]
    ends = [number for number in (model.sos, model.eos) if _MARK.fullmatch(tokens[number]) and tokens[number] != SPACE]
    return sorted({*unknown, *ends} - {model.blank_id})


def only_text(logits: Tensor, forbidden: Sequence[int]) -> Tensor:
    """Logits (..., V), changed in place: NEVER for tokens that are not text."""
    for token in forbidden:  # one by one: for a list of them, the host would wait for a GPU
        logits[..., token] = NEVER
    return logits


class TextJoint(nn.Module):
    """A joiner with the interface of searches, whose logits (..., V) only allow text tokens."""

    def __init__(self, joint: Any, forbidden: Sequence[int]) -> None:
        super().__init__()
        self.joint, self.forbidden = joint, list(forbidden)
        self.lin_enc, self.lin_dec = joint.lin_enc, joint.lin_dec  # for searches that project the encoder's output once

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        return only_text(self.joint(*inputs, **options), self.forbidden)


class Spelling:
    """Conversion between tokens and text by ``token_type`` and ``bpemodel`` of a training configuration."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.words = config["token_type"] in WORD_TYPES
        self._tokenizer = build_tokenizer(token_type=config["token_type"], bpemodel=config.get("bpemodel"))

    def tokens(self, text: str) -> list[str]:
        return list(self._tokenizer.text2tokens(text))

    def text(self, tokens: Sequence[str]) -> str:
        """With WORD_TYPES, all tokens are separated by spaces; ESPnet would join phonemes without spaces."""
        return " ".join(tokens) if self.words else str(self._tokenizer.tokens2text(tokens)).strip()
