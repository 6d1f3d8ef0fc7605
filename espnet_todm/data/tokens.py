"""Stage 5: the token list, from sentencepiece (unigram or bpe) or characters, in ESPnet's order.

ESPnet's order is ``<blank>`` (id 0, CTC's and the transducer's blank), ``<unk>``, the pieces, ``<sos/eos>``.
sentencepiece counts its own ``<unk>``, ``<s>`` and ``</s>`` in the vocabulary size, so a size of 500 gives 497 pieces
and a list of 500 tokens.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Optional

import sentencepiece

from espnet_todm.data.transcripts import plain_text
from espnet_todm.errors import UserError, last_line
from espnet_todm.util.checks import check_choice, check_number
from espnet_todm.util.files import PathLike, read_lines, split_key, write_text
from espnet_todm.util.stage_marker import atomic_stage
from espnet_todm.util.vocabulary import BLANK, SENTENCEPIECE, SOS_EOS, SPACE, TOKENS, UNKNOWN, WORD_MARK

TOKEN_TYPES = ("unigram", "bpe", "char")
_MODEL_SPECIALS = 3  # <unk>, <s>, </s>
_SAMPLED_SENTENCES = 5_000_000  # beyond this sentencepiece trains on a sample
_LINE_BYTES = 4192  # sentencepiece leaves out longer lines unless told
_WORDS_SHOWN = 5


def make_tokens(token_type: str, size: Optional[int], texts: Sequence[PathLike], output: PathLike) -> Path:
    """Write ``tokens.txt`` (one token per line) and, for unigram and bpe, ``bpe.model`` into the folder ``output``.

    texts: Kaldi tables (utterance, then words), plain or ``.gz``. size: tokens in all; characters take all that occur.
    Text is written back from the tokens as it stands; what cannot be is said. Raises UserError for an unknown type, a size
    that the text does not allow, text without words, and text with the mark of tokens in it.
    """
    check_choice("token_type", token_type, TOKEN_TYPES)
    if token_type != "char":
        check_number("token_size", size, at_least=1, whole=True)
    size = None if token_type == "char" else size
    words = Words(texts)
    options = {"stage": "tokens", "token_type": token_type, "size": size, "text": words.digest}
    with atomic_stage(output, options) as folder:
        if folder is None:
            return Path(output)
        if size is None:
            tokens = characters(words)
        else:
            model = train_sentencepiece(words, token_type, size, words.longest)
            (folder / SENTENCEPIECE).write_bytes(model)
            tokens = pieces(model)
            _report_changed(changed_words(model, words), output)
        write_text(folder / TOKENS, "".join(f"{token}\n" for token in [BLANK, UNKNOWN, *tokens, SOS_EOS]))
    logging.info("%s: %d tokens from %d lines of text", output, len(tokens) + _MODEL_SPECIALS, words.lines)
    return Path(output)


class Words:
    """The words of each line of Kaldi text tables, read anew at each iteration, with what a first reading finds.

    lines: how many there are; longest: bytes of the longest; digest: SHA-256 of them all.
    Raises UserError as ``read_words``, and for text with the mark of tokens in it.
    """

    def __init__(self, texts: Sequence[PathLike]) -> None:
        self._texts = texts
        self.lines, self.longest = 0, 0
        found = hashlib.sha256()
        for line in self:
            if WORD_MARK in line:
                raise UserError(
                    f"token_type: the text holds {WORD_MARK} (U+2581), which stands for spaces in tokens: {line[:60]!r}"
                )
            content = line.encode()
            found.update(b"\n" + content if self.lines else content)
            self.lines, self.longest = self.lines + 1, max(self.longest, len(content))
        self.digest = found.hexdigest()

    def __iter__(self) -> Iterator[str]:
        return (line for text in self._texts for line in iterate_words(text))


def iterate_words(path: PathLike) -> Iterator[str]:
    """The words of each line of a Kaldi text table, plain or ``.gz``, without the utterance names, as plain text.

    Raises UserError when the file is missing or not UTF-8, and at its end when it is without words.
    """
    some = False
    for row in read_lines(path):
        line = plain_text(split_key(row)[1])
        if line:
            some = True
            yield line
    if not some:
        raise UserError(f"{path}: no words in it; each line is an utterance's name and its words")


def read_words(path: PathLike) -> list[str]:
    """All of ``iterate_words`` at once."""
    return list(iterate_words(path))


def read_sentences(path: PathLike) -> list[str]:
    """The lines of a text file, plain or ``.gz``, that are not empty, as plain text. Raises UserError as ``read_words``."""
    lines = [line for line in map(plain_text, read_lines(path)) if line]
    if not lines:
        raise UserError(f"{path}: no words in it")
    return lines


def train_sentencepiece(lines: Iterable[str], token_type: str, size: int, longest: int) -> bytes:
    """A sentencepiece model with exactly ``size`` pieces. longest: bytes of the longest line.

    Raises UserError, with the allowed sizes, when that cannot be.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type=token_type,
            vocab_size=size,
            character_coverage=1.0,
            input_sentence_size=_SAMPLED_SENTENCES,
            # The default of both would lose text: longer lines altogether, and letters in favour of others (nmt_nfkc).
            max_sentence_length=max(_LINE_BYTES, longest),
            normalization_rule_name="identity",
            num_threads=1,  # the same model on every machine
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _size_error(token_type, size, str(error)) from error
    return model.getvalue()


def changed_words(model: bytes, lines: Iterable[str]) -> Counter[tuple[str, str]]:
    """How often a word of ``lines`` comes back as another from the tokens: (word, what it becomes) -> count."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    changed: Counter[tuple[str, str]] = Counter()
    for word, count in Counter(word for line in lines for word in line.split()).items():
        again = processor.decode(processor.encode(word, out_type=str))
        if again != word:
            changed[word, again] = count
    return changed


def pieces(model: bytes) -> list[str]:
    """The pieces of a sentencepiece model in its order, without its special ones."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(number) for number in range(_MODEL_SPECIALS, processor.vocab_size())]


def characters(lines: Iterable[str]) -> list[str]:
    """All characters of the text, the most frequent first, with the space by its name."""
    counts = Counter(character for line in lines for character in line)
    return [SPACE if one == " " else one for one in sorted(counts, key=lambda one: (-counts[one], one))]


def _report_changed(changed: Counter[tuple[str, str]], output: PathLike) -> None:
    if changed:
        shown = ", ".join(
            f"{word!r} as {again!r} ({count})" for (word, again), count in changed.most_common(_WORDS_SHOWN)
        )
        logging.warning(
            "%s: the tokens cannot write %d different words (%d in all), which even a perfect model gets wrong: %s",
            output,
            len(changed),
            sum(changed.values()),
            shown,
        )


def _size_error(token_type: str, size: int, message: str) -> UserError:
    too_large = re.search(r"value <= (\d+)", message)
    too_small = re.search(r"smaller than required_chars\. \d+ vs (\d+)", message)
    if too_large:
        return UserError(f"token_size: {size} is too large for this text; {token_type} allows at most {too_large[1]}")
    if too_small:
        return UserError(
            f"token_size: {size} is too small for this text's characters; at least {too_small[1]} is needed"
        )
    return UserError(f"token_size: {size}: sentencepiece says: {last_line(message) or 'nothing'}")
