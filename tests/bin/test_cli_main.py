"""espnet-todm: one command for all, quick to help, and examples that its commands accept."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from espnet_todm.bin.bench import KINDS
from espnet_todm.bin.main import FIRST, commands, main, summary
from espnet_todm.errors import UserError
from tests.tiny_training import python

OURS = [name for name in commands() if name not in ("asr-train", "asr-inference")]  # whose options are not ESPnet's
LIGHT = """
import sys
sys.argv = ["espnet-todm", "--help"]
from espnet_todm.bin.bench import KINDS
from espnet_todm.bin.main import entry
entry()
heavy = {name.partition(".")[0] for name in sys.modules} & {"torch", "espnet2", "espnet", "numpy", "lhotse", "matplotlib"}
assert not heavy, heavy
"""


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    done = python(["-c", LIGHT])
    assert done.returncode == 0, done.stderr
    for name, module in commands().items():
        assert f"  {name} " in done.stdout and summary(module) in done.stdout
    assert "Example: espnet-todm " in done.stdout


def test_commands_are_all_modules_and_come_in_the_order_of_use() -> None:
    folders = importlib.import_module("espnet_todm.bin").__path__
    modules = {path.stem for folder in folders for path in Path(folder).glob("[a-z]*.py")}
    modules -= {"main", "make_mini_corpus", *KINDS.values()}
    assert {module.rpartition(".")[2] for module in commands().values()} == modules
    names = list(commands())
    assert [name for name in names if name in FIRST] == names[: len(set(names) & set(FIRST))]
    assert names[0] == "extract"


@pytest.mark.parametrize("name", commands())
def test_every_command_has_a_main(name: str) -> None:
    module = importlib.import_module(commands()[name])
    assert callable(module.main) and summary(commands()[name]) == (module.__doc__ or "").partition("\n")[0] != ""


def test_a_command_that_is_not_there_is_one_line_with_those_that_are() -> None:
    with pytest.raises(UserError, match=r"'extrakt' is no command of espnet-todm; there are: extract, .*pack") as error:
        main(["extrakt"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spelling", ["fine-tune", "fine_tune"])
def test_a_command_runs_under_its_name(spelling: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([spelling, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: espnet-todm fine-tune ")


def test_a_users_error_in_a_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["hook", "sideways"])
    assert ended.value.code == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and "'sideways'" in printed and printed.count("\n") == 1


def test_a_working_command_prints_what_it_prints(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["hook", "status", "--site", str(tmp_path)])
    assert capsys.readouterr().out.startswith("off: ")
    main(["--version"])
    assert capsys.readouterr().out.startswith("espnet-todm ")


class Parsed(Exception):
    """Raised with the arguments that a parser does not know."""


@pytest.mark.parametrize("name", [*OURS, *KINDS])
def test_the_example_in_the_help_is_accepted(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"espnet_todm.bin.{KINDS[name]}" if name in KINDS else commands()[name])
    called = f"espnet_todm.bin.bench {name}" if name in KINDS else commands()[name]
    with pytest.raises(SystemExit):
        module.main(["--help"])
    told = capsys.readouterr().out.replace("\\\n", " ")
    example = re.search(rf"^Example: python -m {re.escape(called)} (.*)", told, re.MULTILINE)
    assert example, told
    parse = argparse.ArgumentParser.parse_known_args

    def stop(self: argparse.ArgumentParser, *arguments: Any, **more: Any) -> Any:
        known, unknown = parse(self, *arguments, **more)
        if not self.add_help:  # looks for --config alone, before the options
            return known, unknown
        raise Parsed(unknown)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
    with pytest.raises(Parsed) as parsed:
        module.main(shlex.split(example[1], comments=True))
    assert parsed.value.args[0] == []


@pytest.mark.parametrize("name", OURS)
def test_a_wrong_option_is_one_line(name: str) -> None:
    with pytest.raises(UserError) as error:
        importlib.import_module(commands()[name]).main(["--no_such_option"])
    assert "\n" not in str(error.value)


def test_setup_installs_the_command() -> None:
    text = (Path(__file__).parents[2] / "setup.py").read_text(encoding="utf-8")
    found = re.search(r'"espnet-todm=([\w.]+):(\w+)"', text)
    assert found and callable(getattr(importlib.import_module(found[1]), found[2]))


def test_the_kinds_of_bench_are_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "rtf", "--help"])
    assert capsys.readouterr().out.startswith("usage: espnet-todm bench rtf ")
    with pytest.raises(SystemExit):
        main(["measure-rtf", "--help"])  # its name of before
    assert capsys.readouterr().out.startswith("usage: espnet-todm measure-rtf ")
    with pytest.raises(SystemExit):
        main(["bench", "speed"])
    assert "invalid choice: 'speed' (choose from" in capsys.readouterr().err


def test_a_command_that_has_moved_says_where() -> None:
    with pytest.raises(UserError, match=r"python local/make_mini_corpus\.py"):
        importlib.import_module("espnet_todm.bin.make_mini_corpus").main([])
