"""The lexicon of a dictionary and of words that it lacks."""

from __future__ import annotations

import gzip
from pathlib import Path

from make_lexicon import complete, make_lexicon, network, possessive

KNOWN = {"cat": ("K", "AE", "T"), "dog": ("D", "AO", "G"), "horse": ("HH", "AO", "R", "S")}


def test_possessives_of_known_words() -> None:
    assert possessive("cat's", KNOWN) == ("K", "AE", "T", "S")
    assert possessive("dog's", KNOWN) == ("D", "AO", "G", "Z")
    assert possessive("horse's", KNOWN) == ("HH", "AO", "R", "S", "IH", "Z")
    assert possessive("cat'", KNOWN) == KNOWN["cat"]
    assert possessive("cats", KNOWN) is possessive("bird's", KNOWN) is possessive("cat'll", KNOWN) is None


def test_a_guessed_name_has_a_possessive_too() -> None:
    asked = []

    def speak(word: str) -> list[str]:
        asked.append(word)
        return ["L", "IH", "N", "D"]

    found = complete(["cat", "dog's", "lynde", "lynde's", "'"], KNOWN, lambda: speak)
    assert found["lynde's"] == ("L", "IH", "N", "D", "Z") and found["dog's"][-1] == "Z"
    assert "cat" not in asked and "'" not in found


def test_no_network_where_the_dictionary_has_all(tmp_path: Path) -> None:
    (tmp_path / "dict").write_text("cat K AE1 T # an animal\ncat(2) K AA1 T\ndog D AO1 G\n")
    (tmp_path / "text").write_text("u1 CAT DOG\n")
    (tmp_path / "more.gz").write_bytes(gzip.compress(b"u2 CAT'S\n"))

    def no_network() -> None:
        raise AssertionError

    output = make_lexicon(
        tmp_path / "dict", [tmp_path / "text", tmp_path / "more.gz"], tmp_path / "out/lexicon.txt", no_network
    )
    assert output.read_text() == "cat K AE T\ncat's K AE T S\ndog D AO G\n"


def test_the_network_speaks_without_downloads() -> None:
    speak = network()
    assert list(speak("hummed")) == ["HH", "AH", "M", "D"]
