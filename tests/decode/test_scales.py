"""Tuned scales: the search for them, and stages 13 and 14 with a language model on an untrained supernet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("flashlight.lib.text.decoder")

from espnet_todm.bin.score import main as score_main
from espnet_todm.bin.tune_lm import main as tune_main

from espnet_todm.bin.decode import main as decode_main
from espnet_todm.decode.decode import Decoder
from espnet_todm.decode.features import read_features
from espnet_todm.decode.options import SearchOptions
from espnet_todm.decode.scales import NAMES, Tuning, log_prior, lowest, scaled, tune_scales
from espnet_todm.deploy.extract import extract, load_supernet
from espnet_todm.errors import UserError
from espnet_todm.espnet.load import load_extracted
from espnet_todm.lm.ngram import estimate, write_arpa
from espnet_todm.report.experiment import load_experiment
from espnet_todm.report.results import model_section
from espnet_todm.util.files import read_json, read_table


@given(
    bottom=st.tuples(st.floats(-1, 3), st.floats(-3, 3), st.floats(-1, 1)),
    starts=st.lists(st.tuples(st.floats(0, 2), st.floats(-2, 2), st.floats(0, 1)), min_size=1, max_size=3),
)
@settings(max_examples=30, deadline=None)
def test_the_best_point_is_no_worse_than_any_other_and_within_bounds(bottom: tuple, starts: list) -> None:
    def errors(point: tuple) -> int:
        return round(100 * sum((a - b) ** 2 for a, b in zip(point, bottom)))

    tried = lowest(errors, starts, (0.4, 1.0, 0.2), (0.0, -np.inf, 0.0))
    *_, (best, count) = tried.items()
    assert count == errors(best) == min(tried.values()) <= min(map(errors, starts))
    assert best[0] >= 0 and best[2] >= 0
    nearest = tuple(max(0.0, value) if axis != 1 else value for axis, value in enumerate(bottom))
    assert all(abs(a - b) <= step for a, b, step in zip(best, nearest, (0.15, 0.3, 0.15)))


def test_a_coordinate_without_a_step_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = lowest(lambda point: round(-10 * sum(point)) if sum(point) < 3 else 0, [(0.0, 0.0)], (0.0, 1.0), (0.0, 0.0))
    assert {point[0] for point in tried} == {0.0} and len(tried) > 2


def test_the_prior_is_the_mean_posterior() -> None:
    rows = [np.log([[0.5, 0.5, 1e-30]]), np.log([[0.1, 0.9, 1e-30], [0.3, 0.7, 1e-30]])]
    assert np.exp(log_prior(rows)) == pytest.approx([0.3, 0.7, 1e-4])


@pytest.fixture(scope="module")
def lab(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """exp/subnets/{full,small}, dump/dev with the words that the untrained full size happens to write, and lm.arpa."""
    folder = tmp_path_factory.mktemp("lab")
    supernet = load_supernet(experiment / "config.yaml", experiment / "model.pth")
    for size in ("small", "full"):
        extract(supernet, supernet.encoder.find_subnet(size), folder / "exp/subnets" / size)
    decoder = Decoder(*load_extracted(folder / "exp/subnets/full"))
    (folder / "dump/dev").mkdir(parents=True)
    (folder / "dump/dev/feats.scp").write_text((experiment / "feats.scp").read_text())
    heard = [f"{name} {decoder([x])[0]} A\n" for name, x in read_features(experiment / "feats.scp")]
    (folder / "dump/dev/text").write_text("".join(heard))
    write_arpa(estimate([line.partition(" ")[2] for line in heard] + ["A B", "B A G"], 2), folder / "lm.arpa")
    return folder


def test_stages_13_and_14_with_a_language_model(lab: Path) -> None:
    common = ["--experiment", str(lab / "exp"), "--data", str(lab / "dump"), "--logs", str(lab / "logs")]
    search = ["--search", "prefix", "--beam_size", "4", "--lm", str(lab / "lm.arpa")]
    tune_main([*common, "--set", "dev", *search])
    decode_main([*common, "--sets", "dev", "--output", "decode_prefix_lm", *search, "--tuned"])
    decode_main([*common, "--sets", "dev"])
    score_main([*common[:4], "--sets", "dev"])
    score_main([*common[:4], "--sets", "dev", "--decode", "decode_prefix_lm"])

    loaded = load_experiment(lab / "exp")
    assert loaded.splits == ("dev", "dev prefix_lm")
    for size in loaded.sizes:
        scales = read_json(lab / "exp/lm_scales" / size.name / "scales.json")
        assert scales["errors"] <= scales["errors_without"]
        assert scales["errors"] <= min(count for *_, count in scales["tried"])
        assert size.scores["dev prefix_lm"].total().errors == scales["errors"]  # the same posteriors, the same search
        used = loaded.searches[f"dev prefix_lm/{size.name}"]
        assert all(used[name] == scales[name] for name in NAMES)
    page = model_section(loaded, "noise", None, [])
    assert "dev prefix_lm/full: prefix, beam 4, language model" in page and "- Search: dev/full" not in page


def test_tuning_is_not_done_again_and_counts_some_utterances_only(lab: Path, tmp_path: Path) -> None:
    search = SearchOptions("prefix", beam_size=2, lm=str(lab / "lm.arpa"))
    data = lab / "dump/dev"
    work = Tuning(str(lab / "exp/subnets/small"), f"{data}/feats.scp", f"{data}/text", str(tmp_path / "out"), 2, search)
    first = tune_scales(work)
    written = (tmp_path / "out/scales.json").stat().st_mtime_ns
    assert first["utterances"] == 2 and tune_scales(work) == first
    assert (tmp_path / "out/scales.json").stat().st_mtime_ns == written
    assert scaled(search, tmp_path / "out").lm_weight == first["lm_weight"]


def test_scales_without_a_language_model_are_of_words_and_prior(lab: Path, tmp_path: Path) -> None:
    data = lab / "dump/dev"
    search = SearchOptions("prefix", beam_size=2, lm_weight=0)
    work = Tuning(str(lab / "exp/subnets/full"), f"{data}/feats.scp", f"{data}/text", str(tmp_path / "out"), 9, search)
    found = tune_scales(work)
    assert {point[0] for point in found["tried"]} == {0.0} and len(found["tried"]) > 3


def test_prefix_search_without_a_language_model_needs_no_more_files(lab: Path) -> None:
    plain = [
        "--experiment",
        str(lab / "exp"),
        "--data",
        str(lab / "dump"),
        "--logs",
        str(lab / "logs"),
        "--sets",
        "dev",
    ]
    decode_main([*plain, "--output", "decode_prefix", "--search", "prefix", "--sizes", "small"])
    assert len(read_table(lab / "exp/decode_prefix/dev/small/text")) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--search", "prefix", "--lm", "none.arpa"], "lm: none.arpa: no such file"),
        (["--search", "prefix", "--lexicon", "none.txt"], "lexicon: none.txt: no such file"),
        (["--search", "prefix", "--tuned", "--sizes", "new"], "new/scales.json: no such file"),
        (["--lm", "none.arpa"], "needs search: prefix"),
        (["--search", "beam"], "search: 'beam' is unknown; allowed: greedy, prefix, default"),
    ],
)
def test_what_users_do_wrong(lab: Path, options: list[str], words: str) -> None:
    plain = [
        "--experiment",
        str(lab / "exp"),
        "--data",
        str(lab / "dump"),
        "--logs",
        str(lab / "logs"),
        "--sets",
        "dev",
    ]
    with pytest.raises(UserError, match=words):
        decode_main([*plain, *options])
    assert not (lab / "exp/decode/dev/new").exists()


def test_greedy_search_has_nothing_to_tune() -> None:
    with pytest.raises(UserError, match="'greedy' has no scales"):
        tune_scales(Tuning("", "", "", "", 1, SearchOptions()))
