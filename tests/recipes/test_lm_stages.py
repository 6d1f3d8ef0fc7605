"""Stages 6 to 9 as a user runs them, and decoding with what they leave."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest

from espnet_todm.util.files import read_json, read_table
from tests.recipes.conftest import Recipe
from tests.tiny_corpus import WORDS, write_split

pytestmark = pytest.mark.recipe

DATA = [
    "--train_set", "train-tiny", "--valid_set", "dev-tiny", "--test_sets", "test-tiny", "--token_size", 26,
    "--nj", 1, "--cpu_processes", 1, "--speed_factors", "none", "--asr_config", "conf/train_ci.yaml", "--asr_tag", "tiny",
]  # fmt: skip
LM = ["--stage", 6, "--stop_stage", 9, "--lm_order", 3]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe that has run stages 1 to 9, with more text."""
    folder = tmp_path_factory.mktemp("recipe")
    for split in ("train-tiny", "dev-tiny", "test-tiny"):
        write_split(folder, split)
    (folder / "more.gz").write_bytes(gzip.compress(b"THE CAT SANG TO ME\nA SONG\n"))
    recipe = Recipe(folder, "librispeech")
    recipe.output = recipe.good(
        "--corpus", folder, *DATA, "--lm_order", 3, "--lm_text", folder / "more.gz", "--stop_stage", 9
    )
    return recipe


def test_the_stages_leave_text_n_grams_perplexity_and_a_lexicon(done: Recipe) -> None:
    folder = done.folder / "data/lm"
    text = (folder / "text/text").read_text().splitlines()
    assert text == [*read_table(done.folder / "data/train-tiny/text").values(), "THE CAT SANG TO ME", "A SONG"]
    assert "ngram 3=" in (folder / "3gram/lm.arpa").read_text()
    figures = read_json(folder / "3gram_perplexity/perplexity.json")
    assert figures["test-tiny"]["sentences"] == 6 and 1 < figures["test-tiny"]["perplexity"] < 3 * len(WORDS)
    assert f"test-tiny: perplexity {figures['test-tiny']['perplexity']:.1f}" in done.output
    words = {line.split()[0] for line in (folder / "3gram_unigram_26/lexicon.txt").read_text().splitlines()}
    assert {"THE", "CAT", "SANG"} <= words <= set(WORDS)


def test_the_same_options_again_do_nothing_and_no_order_says_so(done: Recipe) -> None:
    arpa = done.folder / "data/lm/3gram/lm.arpa"
    written = arpa.stat().st_mtime_ns
    more = done.folder.parents[1] / "more.gz"
    assert done.good(*DATA, *LM, "--lm_text", more).count("skipped") == 4
    assert arpa.stat().st_mtime_ns == written
    out = done.good(*DATA, "--stage", 6, "--stop_stage", 9)
    assert out.count("--lm_order is 0, no language model") == 4 and out.count("\n") == 4


def test_a_model_from_elsewhere_and_decoding_with_it(done: Recipe) -> None:
    pytest.importorskip("flashlight.lib.text.decoder")
    given = done.folder.parents[1] / "given.arpa.gz"
    given.write_bytes(gzip.compress((done.folder / "data/lm/3gram/lm.arpa").read_bytes()))
    search = ["--lm", given, "--lm_vocabulary", "closed", "--beam_size", 3]
    search += ["--decode_config", "../../conf/decode/prefix.yaml"]
    done.good(*DATA, *search, "--stage", 6, "--stop_stage", 14)
    exp = done.folder / "exp/tiny"
    heard = read_table(exp / "decode_prefix_lm/test-tiny/small/text")
    assert len(heard) == 6 and {word for text in heard.values() for word in text.split()} <= set(WORDS)
    scales = read_json(exp / "lm_scales/small/scales.json")
    assert scales["errors"] <= scales["errors_without"]
    assert read_json(exp / "decode_prefix_lm/test-tiny/small/score.json")["split"] == "test-tiny prefix_lm"


def test_words_from_a_model_of_phonemes(done: Recipe, tmp_path: Path) -> None:
    """Stages 5 to 15 with a word n-gram on a copy of the module's data, and phonemes without it."""
    pytest.importorskip("flashlight.lib.text.decoder")
    top, recipe = tmp_path, Recipe(tmp_path, "librispeech")
    for name in ("data", "dump"):
        shutil.copytree(done.folder / name, recipe.folder / name, ignore=shutil.ignore_patterns("lm", "token_list"))
    (top / "letters.dic").write_text("".join(f"{word} {' '.join(word)}\n" for word in (*WORDS, "SANG")))
    (top / "more.table").write_text("other-1 THE CAT SANG TO ME\n")
    phones = [*DATA, "--asr_tag", "phones", "--token_type", "phone", "--lexicon", top / "letters.dic", "--lm_order", 3]
    phones += ["--lm_unit", "word", "--lm_tables", top / "more.table"]
    recipe.good(*phones, "--stage", 5, "--decode_config", "../../conf/decode/words.yaml")
    text = (recipe.folder / "data/lm/text/text").read_text().splitlines()
    assert text == [*read_table(recipe.folder / "data/train-tiny/text").values(), "THE CAT SANG TO ME"]
    lexicon = (recipe.folder / "data/lm/3gram_words_phone/lexicon.txt").read_text().splitlines()
    assert "THE T H E#" in lexicon and "A A#" in lexicon
    exp = recipe.folder / "exp/phones"
    heard = read_table(exp / "decode_words_lm/test-tiny/small/text")
    assert len(heard) == 6 and {word for text in heard.values() for word in text.split()} <= set(WORDS)
    scales = read_json(exp / "lm_scales/small/scales.json")
    assert scales["errors"] <= scales["errors_without"]
    words = read_json(exp / "decode_words_lm/test-tiny/small/score.json")
    without = ["--decode_config", "../../conf/decode/words.yaml", "--lm_scales", "0 0", "--sizes", "small"]
    recipe.good(*phones, *without, "--stage", 13, "--stop_stage", 14)
    assert read_json(exp / "decode_words/test-tiny/small/score.json")["split"] == "test-tiny words"
    recipe.good(*phones, "--stage", 13, "--stop_stage", 15)
    phonemes = read_json(exp / "decode_phonemes/test-tiny/small/score.json")
    assert phonemes["split"] == "test-tiny phonemes" and phonemes["case_sensitive"]
    assert not words["case_sensitive"] and words["words"]["words"] < phonemes["words"]["words"]
    report = (exp / "RESULTS.md").read_text()
    assert (
        "test-tiny words_lm" in report and "of sets marked phonemes, what is called words here are phonemes" in report
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lm_unit", "letter"], "--lm_unit: 'letter', but phone or word"),
        (["--lm_unit", "word"], "--lm_unit: word is for --token_type phone, but --token_type is unigram"),
        (["--lm_order", 1], "--lm_order: '1', but 0 (no language model) or 2 to 5 is expected"),
        (["--lm_vocabulary", "all"], "--lm_vocabulary: 'all', but open or closed"),
        (["--lm_scales", "0.5"], "--lm_scales: '0.5', but tuned or two numbers"),
        (["--lm_order", 4, "--stage", 8, "--stop_stage", 8], "data/lm/4gram/lm.arpa: no such file"),
        (["--lm_order", 4, "--stage", 6, "--lm_text", "none"], "none: no such file"),
        (["--lm", "none.arpa", "--stage", 8, "--stop_stage", 8], "none.arpa: no such file"),
    ],
)
def test_what_users_do_wrong(done: Recipe, options: list, words: str) -> None:
    assert words in done.error(*DATA, *options)


def test_stage_7_needs_stage_6(librispeech: Recipe, tmp_path: Path) -> None:
    error = librispeech.error(*DATA, "--lm_order", 3, "--stage", 7, "--stop_stage", 7)
    assert "data/lm/text: not there or not complete; run the stage before" in error
