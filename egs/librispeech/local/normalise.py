"""Plain words of a transcript in any style, for comparing transcripts of different styles of writing.

Text becomes lower case; what stands in brackets goes; ``mr mrs dr st`` with or without a full stop and ``&`` are written
out, and so are numbers: ``1,250`` as cardinal, ``3rd`` as ordinal, four digits from 1100 to 1999 as a year (``eighteen
sixty four``), ``$5`` and ``5%`` with their unit behind. Apostrophes within words stay; all other signs are spaces. British
and American spellings stay different.
"""

from __future__ import annotations

import re
import unicodedata

ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
SCALES = ((10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip
WRITTEN_OUT = {"mr": "mister", "mrs": "missus", "dr": "doctor", "st": "saint"}
UNITS = {"$": "dollars", "£": "pounds", "%": "percent"}


def cardinal(number: int) -> str:
    """Words of a whole number from 0, in American style: ``one hundred two``."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return f"{TENS[number // 10]} {ONES[number % 10]}" if number % 10 else TENS[number // 10]
    size, name = next(scale for scale in SCALES if number >= scale[0])
    rest = f" {cardinal(number % size)}" if number % size else ""
    return f"{cardinal(number // size)} {name}{rest}"


def ordinal(number: int) -> str:
    """Words of a rank: ``twenty first``."""
    *first, last = cardinal(number).split()
    ending = ORDINALS.get(last) or (f"{last[:-1]}ieth" if last.endswith("y") else f"{last}th")
    return " ".join([*first, ending])


def year(number: int) -> str:
    """Words of a year from 1100 to 1999: ``eighteen sixty four``, ``nineteen hundred``, ``nineteen oh five``."""
    century, rest = divmod(number, 100)
    if rest == 0:
        return f"{ONES[century]} hundred"
    return f"{ONES[century]} {'oh ' if rest < 10 else ''}{cardinal(rest)}"


def _number(match: re.Match[str]) -> str:
    before, digits, suffix = match.groups()
    number = int(digits.replace(",", ""))
    if suffix in ("st", "nd", "rd", "th"):
        return f" {ordinal(number)} "
    unit = UNITS.get(before or "", "") or UNITS.get(suffix or "", "")
    plain_year = "," not in digits and not unit and 1100 <= number <= 1999
    words = year(number) if plain_year else cardinal(number)
    if suffix == "s":  # the 1920s
        words = f"{words[:-1]}ies" if words.endswith("y") else f"{words}s"
    return f" {words} {unit} "


def normalise(text: str) -> str:
    """The words of ``text``, separated by single spaces."""
    plain = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    plain = re.sub(r"\[[^]]*]|\([^)]*\)", " ", plain).replace("&", " and ")
    plain = re.sub(r"([$£])?(\d[\d,]*\d|\d)(st|nd|rd|th|%|s\b)?", _number, plain)
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", plain)
    return " ".join(WRITTEN_OUT.get(word, word) for word in words)
