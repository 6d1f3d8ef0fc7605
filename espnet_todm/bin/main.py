"""espnet-todm: every command of espnet_todm under one name.

``espnet-todm extract ...`` is ``python -m espnet_todm.bin.extract ...``. A command is a module of this package with a
``main(arguments)``; only the one that is called is imported, so help comes at once.

Example: espnet-todm extract --asr_train_config exp/supernet/config.yaml --output exp/supernet/subnets
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_todm import __version__, hook
from espnet_todm import bin as commands_package
from espnet_todm.bin._cli import EXAMPLE, run
from espnet_todm.bin.bench import KINDS
from espnet_todm.errors import UserError

hook.install(pipes=False)  # a training's child processes import this module, not the training's

# Shown first, in the order of their use; the others are mostly stages of the recipes.
TITLES = ("From a trained supernet to devices", "Training, and the stages of the recipes")
FIRST = ("extract", "search", "export", "parity", "listen", "bench", "fine-tune", "release", "pack", "unpack", "report")


def commands() -> dict[str, str]:
    """Names of the commands -> modules, those of FIRST first. The kinds of ``bench`` are told with it."""
    found = {info.name for info in pkgutil.iter_modules(commands_package.__path__) if not info.ispkg}
    found -= {"main", "make_mini_corpus", *KINDS.values()}
    names = {name.replace("_", "-"): name for name in sorted(found) if not name.startswith("_")}
    order = [*(name for name in FIRST if name in names), *(name for name in names if name not in FIRST)]
    return {name: f"{commands_package.__name__}.{names[name]}" for name in order}


def docstring(module: str) -> str:
    """A command's docstring, read without importing it."""
    file = f"{module.rpartition('.')[2]}.py"
    path = next(path for folder in commands_package.__path__ if (path := Path(folder) / file).is_file())
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def summary(module: str) -> str:
    """First line of a command's docstring."""
    return docstring(module).partition("\n")[0]


def help_text() -> str:
    """What ``espnet-todm --help`` prints."""
    known = commands()
    width = max(map(len, known))
    lines = [f"  {name:{width}}  {summary(module)}" for name, module in known.items()]
    first = sum(name in FIRST for name in known)
    return "\n".join(
        [
            "usage: espnet-todm COMMAND [OPTION...]     (espnet-todm COMMAND --help tells a command's options)",
            *("", f"{TITLES[0]}:", *lines[:first]),
            *("", f"{TITLES[1]}:", *lines[first:]),
            *(
                "",
                "Example: espnet-todm extract --asr_train_config exp/supernet/config.yaml --output exp/supernet/subnets",
            ),
        ]
    )


def markdown() -> str:
    """What ``espnet-todm --markdown`` prints: the page docs/commands.md."""
    lines = [
        "# All commands",
        "",
        "`espnet-todm extract` and `python -m espnet_todm.bin.extract` are the same; `--help` tells a command's options.",
        "`espnet-todm --markdown` wrote this page.",
    ]
    for number, (name, module) in enumerate(commands().items()):
        if number in (0, len(FIRST)):
            lines += ["", f"## {TITLES[number > 0]}"]
        example = docstring(module).partition(EXAMPLE)[2].strip()
        lines += ["", f"**`{name}`** {summary(module)}", *(["", "```", example, "```"] if example else [])]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Run one command; a wrong name ends in one line with those that there are."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help", "help"):
        print(help_text())
        return
    if name == "--markdown":
        print(markdown())
        return
    if name == "--version":
        print(f"espnet-todm {__version__}")
        return
    known = {**commands(), **{old.replace("_", "-"): f"{commands_package.__name__}.{old}" for old in KINDS.values()}}
    command = name.replace("_", "-")
    if command not in known:
        raise UserError(f"{name!r} is no command of espnet-todm; there are: {', '.join(commands())}")
    sys.argv = [f"espnet-todm {command}", *rest]  # where argparse takes the program's name from
    module = importlib.import_module(known[command])
    run(module.main, logs=getattr(module, "LOGS", True))


def entry() -> None:
    """The console command."""
    run(main, logs=False)


if __name__ == "__main__":
    entry()
