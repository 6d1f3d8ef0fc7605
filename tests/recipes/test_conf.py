"""Each file of conf/: of one concern, readable by the parser that it is for, and used by a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

import espnet_todm
from espnet_todm.bin.decode import parse_with_settings, parser, search_options
from espnet_todm.decode.context import parse_contexts
from espnet_todm.espnet.config_inheritance import read_config, read_yaml
from espnet_todm.espnet.options import parse_training
from tests.recipes.conftest import ROOT

espnet_todm.register()
CONF = ROOT / "conf"
FOUND = sorted(path.relative_to(CONF) for path in CONF.glob("**/*.yaml"))
RECIPES = sorted(ROOT.glob("egs/*/conf/*.yaml"))
ENCODER, OPTIM = {"encoder", "encoder_conf"}, {"optim", "optim_conf", "scheduler", "scheduler_conf", "grad_clip"}
SPECAUG, SEARCH_SPACE = {"specaug", "specaug_conf"}, {"encoder_conf", "subnet_trainer_conf"}
# The parts whose options a file may have without naming them.
COMPLETED = {"search_space": ["--encoder", "todm_mh_ssm", "--subnet_trainer", "kd"], "train": ["--model", "todm"]}


def bases(path: Path) -> list[Path]:
    """What a file names as its bases."""
    named = read_yaml(path).get("base", [])
    return [(path.parent / name).resolve() for name in (named if isinstance(named, list) else [named])]


def own_keys(path: Path) -> set[str]:
    return set(read_yaml(path)) - {"base"}


@pytest.mark.parametrize("name", FOUND, ids=str)
def test_a_file_is_of_one_concern_and_says_what_it_is_for(name: Path) -> None:
    concern, keys = name.parts[0], own_keys(CONF / name)
    assert (CONF / name).read_text(encoding="utf-8").startswith("# ")
    if concern == "search_space":
        inner = {key for part in SEARCH_SPACE & keys for key in read_yaml(CONF / name)[part]}
        assert keys < SEARCH_SPACE and inner <= {"sizes", "search_space"}
    elif concern != "decode":
        others = {"encoder": ENCODER, "optim": OPTIM, "specaug": SPECAUG}
        assert keys <= others[concern] if concern in others else not keys & (ENCODER | OPTIM | SPECAUG)


@pytest.mark.parametrize("name", [name for name in FOUND if name.parts[0] != "decode"], ids=str)
def test_the_training_command_knows_every_key(name: Path) -> None:
    given = ["--config", str(CONF / name), "--output_dir", "-", "--token_list", "-", *COMPLETED.get(name.parts[0], [])]
    options = vars(parse_training(given))
    for key, value in read_config(CONF / name).items():
        assert options[key] == value


@pytest.mark.parametrize("name", [name for name in FOUND if name.parts[0] == "decode"], ids=str)
def test_the_decoding_command_takes_every_setting(name: Path) -> None:
    given = ["--experiment", "-", "--data", "-", "--sets", "dev", "--config", str(CONF / name)]
    parsed = parse_with_settings(parser, given)
    search, (context,) = search_options(parsed), parse_contexts(parsed.chunk)
    taken = {**vars(search), "search": search.kind, "chunk": context and [context.chunk.frames, context.chunk.left]}
    settings = read_config(CONF / name)
    assert {key: taken[key] for key in settings} == settings


@pytest.mark.parametrize("name", FOUND, ids=str)
def test_every_file_is_used_by_a_recipe_or_documented(name: Path) -> None:
    """As a base of a configuration, or of one of its bases; decoding settings by a recipe's scripts or page."""
    if any(f"conf/{name}" in path.read_text(encoding="utf-8") for path in ROOT.glob("docs/*.md")):
        return
    if name.parts[0] == "decode":
        texts = [path.read_text(encoding="utf-8") for path in (*ROOT.glob("egs/*/*.sh"), *ROOT.glob("egs/*/README.md"))]
        assert any(f"--decode_config ../../conf/{name}" in text for text in texts)
        return
    used, rest = set(), [base for path in RECIPES for base in bases(path)]
    while rest:
        path = rest.pop()
        used.add(path)
        rest += bases(path)
    assert CONF / name in used


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "egs")))
def test_a_recipe_leans_on_no_other(path: Path) -> None:
    assert all(base.parent == path.parent or CONF in base.parents for base in bases(path))
