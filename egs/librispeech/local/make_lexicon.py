"""A pronunciation lexicon: a dictionary, and the words of some transcripts that it lacks.

The dictionary is CMUdict or another in its format. A word that it lacks is the possessive of one that it has, or is
spoken as the network of g2p_en says, which is installed with ESPnet. g2p_en's own tables are not used, since they would be
downloaded.
Example: python local/make_lexicon.py --dictionary cmudict.dict --text data/train-mini/text --output data/lexicon.txt
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Optional

from espnet_todm.bin._cli import Parser, run
from espnet_todm.data.tokens import read_words
from espnet_todm.lm.lexicon import Lexicon, read_lexicon
from espnet_todm.util.files import PathLike, write_text

HISSING, UNVOICED = {"S", "Z", "SH", "ZH", "CH", "JH"}, {"P", "T", "K", "F", "TH"}
Speak = Callable[[str], Sequence[str]]  # word in lower case -> ARPAbet phonemes


def possessive(word: str, known: Lexicon) -> Optional[tuple[str, ...]]:
    """Phonemes of ``word`` if it is the possessive of a known word (``lynde's``, ``birds'``), else None."""
    stem, mark, ending = word.rpartition("'")
    if not mark or ending not in ("", "s") or stem not in known:
        return None
    phonemes = known[stem]
    if not ending:
        return phonemes
    last = phonemes[-1]
    return (*phonemes, *(("IH", "Z") if last in HISSING else ("S",) if last in UNVOICED else ("Z",)))


def network() -> Speak:
    """g2p_en's network. Its tables of words and its tagger would be downloaded; they are replaced by nothing."""
    import nltk

    nltk.download = lambda *names, **options: False
    from g2p_en import g2p

    g2p.cmudict = SimpleNamespace(dict=dict)
    speaker = g2p.G2p()
    return lambda word: [phoneme.rstrip("012") for phoneme in speaker.predict(word.replace("'", ""))]


def complete(words: Sequence[str], known: Lexicon, speak: Callable[[], Speak]) -> dict[str, tuple[str, ...]]:
    """Phonemes of each of ``words``, which are in lower case. ``speak`` is asked for once, if a word needs it."""
    spoken = {word: known[word] if word in known else possessive(word, known) for word in words}
    missing = [word for word, phonemes in spoken.items() if phonemes is None and word.strip("'")]
    by_network = speak() if missing else None
    guessed = {word: tuple(by_network(word)) for word in missing} if by_network else {}
    # A possessive of a guessed name is spoken as the name.
    guessed.update({word: made for word in missing if (made := possessive(word, guessed)) is not None})
    logging.info(
        "%d words: %d from the dictionary or by rule, %d guessed", len(words), len(words) - len(missing), len(guessed)
    )
    return {word: phonemes for word, phonemes in {**spoken, **guessed}.items() if phonemes}


def make_lexicon(
    dictionary: PathLike, texts: Sequence[PathLike], output: PathLike, speak: Callable[[], Speak] = network
) -> Path:
    """Write the words of the dictionary and of the tables ``texts`` into the file ``output``, in lower case.

    Raises UserError for a file that cannot be read.
    """
    known = read_lexicon(dictionary)
    words = sorted({word.lower() for text in texts for line in read_words(text) for word in line.split()})
    spoken = {**known, **complete(words, known, speak)}
    lines = [f"{word} {' '.join(phonemes)}\n" for word, phonemes in sorted(spoken.items())]
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    write_text(output, "".join(lines))
    return Path(output)


def main(arguments: Sequence[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--dictionary", required=True, help="CMUdict, or another pronouncing dictionary in its format")
    parser.add_argument("--text", nargs="+", required=True, help="Kaldi tables of transcripts, plain or .gz")
    parser.add_argument("--output", required=True, help="file to write")
    options = parser.parse_args(arguments)
    make_lexicon(options.dictionary, options.text, options.output)


if __name__ == "__main__":
    run(main)
