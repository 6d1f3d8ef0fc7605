"""Stages 6 and 8: the sentences that the language model is estimated from, and its perplexity on the sets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Optional

from espnet_todm.data.tokens import read_sentences, read_words
from espnet_todm.data.transcripts import plain_text
from espnet_todm.errors import UserError
from espnet_todm.lm.arpa import measure_perplexity
from espnet_todm.lm.lexicon import read_lexicon, spell
from espnet_todm.lm.ngram import TEXT
from espnet_todm.util.files import (
    PathLike,
    hash_file,
    hash_text,
    read_json,
    read_lines,
    read_table,
    split_key,
    write_json,
    write_text,
)
from espnet_todm.util.stage_marker import atomic_stage

PERPLEXITY = "perplexity.json"


def make_lm_text(
    transcripts: Sequence[PathLike], texts: Sequence[PathLike], output: PathLike, lexicon: Optional[PathLike] = None
) -> Path:
    """Write ``text``, one sentence a line, into the folder ``output``.

    transcripts: Kaldi tables, of which an utterance counts once; texts: files with one sentence a line; both plain or
    ``.gz``, taken as they are.
    lexicon: for models of phonemes, what the words become (see :mod:`espnet_todm.lm.lexicon`).
    Raises UserError for a file that cannot be read, and for one that shares no word with the transcripts.
    """
    sentences = _transcripts(transcripts)
    known = {word for sentence in sentences for word in sentence.split()}
    for path in texts:
        more = read_sentences(path)
        if known and known.isdisjoint(word for sentence in more for word in sentence.split()):
            raise UserError(
                f"lm_text: {path} shares no word with the transcripts: it has {more[0].split()[0]!r}, they have "
                f"{min(known)!r}; the words must be written alike"
            )
        sentences += more
    if lexicon is not None:
        phonemes = read_lexicon(lexicon)
        sentences = [" ".join(spell(sentence.split(), phonemes)) for sentence in sentences]
    content = "".join(f"{' '.join(sentence.split())}\n" for sentence in sentences)
    options = {"stage": "text of the language model", "text": hash_text(content)}
    with atomic_stage(output, options) as folder:
        if folder is not None:
            write_text(folder / TEXT, content)
            logging.info("%s: %d sentences", output, len(sentences))
    return Path(output)


def _transcripts(tables: Sequence[PathLike]) -> list[str]:
    """The words of each line, without utterances that an earlier table has. Raises UserError as ``read_words``."""
    sentences: list[str] = []
    known: set[str] = set()
    for path in tables:
        read_words(path)
        rows = [split_key(row) for row in read_lines(path)]
        sentences += [text for text in (plain_text(words) for name, words in rows if name not in known) if text]
        known |= {name for name, _ in rows}
    return sentences


def report_perplexity(
    model: PathLike, data: PathLike, sets: Sequence[str], output: PathLike
) -> dict[str, dict[str, Any]]:
    """Perplexity of an ARPA file on ``data``/``<set>``/text, by set; written as perplexity.json in the folder ``output``.

    Raises UserError when a file is missing or a set has no words.
    """
    texts = {name: list(read_table(Path(data) / name / "text").values()) for name in sets}
    options = {"stage": "perplexity", "model": hash_file(model), "text": hash_text(repr(texts))}
    with atomic_stage(output, options) as folder:
        if folder is not None:
            for name, lines in texts.items():
                if not any(line.split() for line in lines):
                    raise UserError(f"perplexity: {Path(data) / name / 'text'} has no words")
            measured = {name: measure_perplexity(model, lines) for name, lines in texts.items()}
            figures = {
                name: {**asdict(one), "perplexity": one.perplexity, "perplexity_of_known": one.perplexity_of_known}
                for name, one in measured.items()
            }
            write_json(folder / PERPLEXITY, figures)
    found: dict[str, dict[str, Any]] = read_json(Path(output) / PERPLEXITY)
    return found
