"""The form in which text goes on: composed characters and single plain spaces, so that every program that reads it counts
the same words.

ESPnet's tables would be cut in two at a carriage return, sentencepiece and scoring programs split words at different sets of
characters, and a letter of two code points is an error where its twin of one is meant. Letters themselves stay as they are:
nothing is folded to another width, case or script, because the words of the references must be those of the corpus.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from espnet_todm.data.listing import Utterance
from espnet_todm.util.files import BYTE_ORDER_MARK

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_OTHER_SPACE = re.compile(r"[\x00-\x1f\x7f-\x9f]|[^\S ]")  # what is shown in the log
_SHOWN = 5


def composed(text: str) -> str:
    """``text`` in Unicode's form NFC: a letter and its accents are one character, however they were typed."""
    return unicodedata.normalize("NFC", text)


def plain_text(text: str) -> str:
    """``text`` composed, every run of white space and control characters one space, none at the ends."""
    text = composed(text).replace(BYTE_ORDER_MARK, "")
    return " ".join(_CONTROL.sub(" ", text).split())


def plain_texts(utterances: Iterable[Utterance], name: str) -> Iterator[Utterance]:
    """The utterances with their texts as ``plain_text`` makes them, None where nothing is left.

    At the end the log says for the split ``name`` how many texts had characters that became spaces or were composed.
    """
    characters: Counter[str] = Counter()
    total, spaced, apart = 0, 0, 0
    for one in utterances:
        text = one.text or ""
        found = set(_OTHER_SPACE.findall(text))
        characters.update(found)
        total, spaced = total + 1, spaced + bool(found)
        apart += not unicodedata.is_normalized("NFC", text)
        yield replace(one, text=plain_text(text) or None)
    if spaced:
        shown = ", ".join(f"U+{ord(character):04X} in {n}" for character, n in characters.most_common(_SHOWN))
        logging.info(
            "%s: %d of %d transcripts had control characters or white space other than spaces, now plain spaces: %s",
            name,
            spaced,
            total,
            shown,
        )
    if apart:
        logging.info("%s: %d of %d transcripts brought into Unicode's form NFC", name, apart, total)
