"""Plain text: what becomes of control characters, of other spaces, and of letters that can be written in two ways."""

from __future__ import annotations

import logging
import unicodedata

import pytest
from espnet2.text.build_tokenizer import build_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from espnet_todm.data.listing import Utterance
from espnet_todm.data.transcripts import plain_text, plain_texts


@given(st.text(max_size=40))
def test_plain_text_is_one_line_of_single_spaces_and_stays_as_it_is(text: str) -> None:
    plain = plain_text(text)
    assert plain_text(plain) == plain and unicodedata.is_normalized("NFC", plain)
    assert plain.splitlines() in ([plain], []) and " ".join(plain.split()) == plain
    assert not any(unicodedata.category(one) == "Cc" for one in plain)


@pytest.mark.parametrize("space", list("\t\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u2028\u2029\u202f\u3000\x00\x07\x7f"))
def test_every_other_space_and_control_character_becomes_a_space(space: str) -> None:
    assert plain_text(f"one{space}two {space} three{space}") == "one two three"


@pytest.mark.parametrize(
    "text",
    [
        "น้ำ",  # Thai's sara am, which NFKC takes apart
        "می\u200cروم",  # Persian, with a zero-width non-joiner
        "ｶﾀｶﾅ \uff21\uff22",  # half and full width
        "ﬁn ½ ² ™ …",  # ligature, fraction, superscript
        "Straße İstanbul",
    ],
)
def test_letters_stay_as_they_are(text: str) -> None:
    assert plain_text(text) == text


@pytest.mark.parametrize("text", ["tiếng Việt", "français", "한국어"])
def test_letters_in_parts_are_composed(text: str) -> None:
    apart = unicodedata.normalize("NFD", text)
    assert apart != text and plain_text(apart) == text


def test_the_log_says_once_how_many_transcripts_changed(caplog: pytest.LogCaptureFixture) -> None:
    texts = ["plain", "two\u2028lines", "a\u2028b\x85c", "cafe\u0301", None, "\x0b"]
    utterances = [Utterance(f"u{number}", "s", None, text) for number, text in enumerate(texts)]
    with caplog.at_level(logging.INFO):
        found = list(plain_texts(utterances, "dev"))
    assert [one.text for one in found] == ["plain", "two lines", "a b c", "café", None, None]
    assert [one.name for one in found] == [one.name for one in utterances]
    spaces, composed = caplog.messages
    assert spaces.startswith("dev: 3 of 6 transcripts had control characters") and "U+2028 in 2, U+0085 in 1" in spaces
    assert composed == "dev: 1 of 6 transcripts brought into Unicode's form NFC"
    caplog.clear()
    assert list(plain_texts(found, "dev")) == found
    assert not caplog.messages


def test_espnet_splits_plain_text_into_the_same_words() -> None:
    plain = plain_text("one\u00a0two\u2028three\x1cfour  five")
    assert build_tokenizer("word").text2tokens(plain) == plain.split(" ") == ["one", "two", "three", "four", "five"]
