"""From encoder output to labels: greedy or prefix beam search for CTC, or ESPnet's own search for transducers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Optional, Union

import numpy as np
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.asr.transducer.beam_search_transducer import BeamSearchTransducer
from torch import Tensor

from espnet_todm.decode.options import GREEDY, PREFIX, TRANSDUCER_BEAM, SearchOptions
from espnet_todm.decode.text import TextJoint, forbidden_tokens, only_text
from espnet_todm.errors import UserError
from espnet_todm.lm.spelling import holds_pronunciations
from espnet_todm.models.greedy import greedy_search
from espnet_todm.util.host import values
from espnet_todm.util.optional import needed

if TYPE_CHECKING:
    from espnet_todm.decode.pronunciation_search import Pronunciations
    from espnet_todm.decode.word_model import WordModel

Found = Union[Sequence[int], str]  # labels, or from phonemes the words
Search = Callable[[Tensor, Tensor], Sequence[Found]]  # encoded (B, T, D), lengths (B,) -> what each utterance says
Words = Union["WordModel", "Pronunciations"]  # the files of a prefix search


def make_search(model: ESPnetASRModel, options: SearchOptions) -> Search:
    """The search for a model, restricted to text tokens. Raises UserError if the model lacks the outputs that it needs."""
    if model.use_transducer_decoder:
        return _transducer_search(model, options)
    if options.kind not in (GREEDY, PREFIX):
        raise UserError(
            f"search: {options.kind} is for transducers, but this model is none; allowed: {GREEDY}, {PREFIX}"
        )
    if model.ctc is None:
        raise UserError(
            f"search: {options.kind} needs a CTC output, but ctc_weight is 0; decode with bin.asr_inference"
        )
    if options.kind == PREFIX:
        return _prefix_search(model, options)
    forbidden = forbidden_tokens(model)
    return lambda encoded, lengths: best_paths(only_text(model.ctc.ctc_lo(encoded), forbidden).argmax(dim=-1), lengths)


def best_paths(likeliest: Tensor, lengths: Tensor) -> list[list[int]]:
    """The most likely label of each frame (B, T), lengths (B,) -> labels of each utterance without repetitions; blanks
    stay.
    """
    return [path[:length].unique_consecutive().tolist() for path, length in zip(likeliest, lengths.tolist())]


def _prefix_search(model: ESPnetASRModel, options: SearchOptions) -> Search:
    forbidden = forbidden_tokens(model)
    beam = make_beam(list(model.token_list), model.blank_id, forbidden, options)

    def search(encoded: Tensor, lengths: Tensor) -> list[Found]:
        logits = only_text(model.ctc.ctc_lo(encoded), forbidden)
        posteriors = logits.log_softmax(dim=-1).float().cpu().numpy()
        return [beam(row[:length]) for row, length in zip(posteriors, lengths.tolist())]

    return search


def read_words(tokens: Sequence[str], silent: Sequence[int], options: SearchOptions) -> Words:
    """The content of ``options.lm`` and ``options.lexicon``, which :func:`make_beam` takes again and again.

    Raises UserError if a file is missing or does not fit the tokens.
    """
    needed("flashlight.lib.text", "lm")
    from espnet_todm.decode.pronunciation_search import Pronunciations
    from espnet_todm.decode.word_model import WordModel

    if options.lexicon and holds_pronunciations(options.lexicon, tokens):
        return Pronunciations(tokens, options.lexicon, options.lm)
    return WordModel(tokens, silent, options.lm, options.lexicon)


def make_beam(
    tokens: Sequence[str], blank: int, silent: Sequence[int], options: SearchOptions, words: Optional[Words] = None
) -> Callable[[np.ndarray], Found]:
    """The search of kind "prefix" on log posteriors (T, V): for labels, or with a lexicon of pronunciations for words.

    Raises UserError if a file is missing or does not fit the tokens.
    """
    needed("flashlight.lib.text", "lm")
    from espnet_todm.decode.prefix_search import PrefixSearch
    from espnet_todm.decode.pronunciation_search import Pronunciations, PronunciationSearch

    if words is None and (options.lm or options.lexicon or options.word_score):
        words = read_words(tokens, silent, options)
    if isinstance(words, Pronunciations):
        return PronunciationSearch(blank, silent, options, words)
    return PrefixSearch(tokens, blank, silent, options, words)


def _transducer_search(model: ESPnetASRModel, options: SearchOptions) -> Search:
    if options.kind == PREFIX:
        allowed = ", ".join((GREEDY, *TRANSDUCER_BEAM))
        raise UserError(f"search: {PREFIX} is for CTC, but this model is a transducer; allowed: {allowed}")
    joint = TextJoint(model.joint_network, forbidden_tokens(model))
    if options.kind == GREEDY:
        return partial(greedy_search, model.decoder, joint)
    if options.beam_size > model.vocab_size - 2:  # mAES adds two more candidates
        raise UserError(f"beam_size: {options.beam_size} is too large for {model.vocab_size} tokens")
    beam = BeamSearchTransducer(model.decoder, joint, options.beam_size, search_type=options.kind)

    def search(encoded: Tensor, lengths: Tensor) -> list[list[int]]:
        return [beam(row[:length])[0].yseq[1:] for row, length in zip(encoded, values(lengths))]

    return search
