"""The documentation stays true: what it links is there, its commands exist with their options, its example runs."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from espnet_todm.bin.bench import KINDS
from espnet_todm.bin.main import markdown

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])


def blocks(page: Path, language: str = "") -> list[str]:
    """Fenced blocks of a language; without one, those that name none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [body for name, body in found if name == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert link.startswith("https://") or (page.parent / link).exists(), link
    for path in re.findall(r"`((?:espnet_todm|egs|tests|benchmarks)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


def sources(command: Path) -> str:
    """Of a command and of every module that it imports from this package, or that it hands options on to in ESPnet."""
    training = ["espnet2.tasks.abs_task", "espnet2.tasks.asr", "espnet2.utils.config_argparse"]
    handed_on = {"asr_inference": ["espnet2.bin.asr_inference"]}
    handed_on.update(dict.fromkeys(("asr_train", "asr_train_cpu", "collect_stats", "dry_run", "fine_tune"), training))
    text = command.read_text(encoding="utf-8")
    names = re.findall(r"^ *from (espnet_todm\.[\w.]+) import", text, re.MULTILINE) + handed_on.get(command.stem, [])
    paths = {name: Path(str(spec.origin)) for name in names if (spec := find_spec(name)) is not None}
    commands = [
        sources(path) for name, path in paths.items() if name.startswith("espnet_todm.bin.") and "_cli" not in name
    ]
    return "".join([text, *commands, *(path.read_text(encoding="utf-8") for path in paths.values())])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist_with_their_options(page: Path) -> None:
    for name in re.findall(r"python -m espnet_todm\.bin\.(\w+)", page.read_text(encoding="utf-8")):
        assert find_spec(f"espnet_todm.bin.{name}") is not None, name
    for line in "".join(blocks(page)).replace("\\\n", " ").splitlines():
        if not line.startswith("python -m "):
            continue
        words = shlex.split(line, comments=True)
        command = f"espnet_todm.bin.{KINDS[words[3]]}" if words[2] == "espnet_todm.bin.bench" else words[2]
        known = sources(Path(str(getattr(find_spec(command), "origin", ""))))
        for option in (word for word in words if word.startswith("--") and word != "--"):
            # An argument of a parser, or a field of a dataclass that the options are made of.
            assert f'"{option}"' in known or re.search(rf"^    {option[2:]}: ", known, re.MULTILINE), (
                f"{words[2]} {option}"
            )


def test_reading_order_names_at_most_eight_files() -> None:
    order = re.findall(r"^\d+\. \[`(.*?)`\]", (ROOT / "docs" / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert 1 <= len(order) <= 8 and all((ROOT / path).is_file() for path in order)


def test_every_page_is_in_the_list() -> None:
    docs = ROOT / "docs"
    listed = set(re.findall(r"\]\(([\w/]+\.md)\)", (docs / "README.md").read_text(encoding="utf-8")))
    assert listed == {page.relative_to(docs).as_posix() for page in docs.glob("**/*.md")} - {"README.md"}


def test_the_page_of_commands_is_what_the_command_prints() -> None:
    assert (ROOT / "docs" / "commands.md").read_text(encoding="utf-8") == markdown() + "\n"


def test_the_example_of_components_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks(ROOT / "docs" / "sizes.md", "python")
    names: dict[str, object] = {}
    exec(compile(example, "sizes.md", "exec"), names)
    count, kinds = capsys.readouterr().out.split(" ", 1)
    assert int(count) == 4 * (4 + 4 + 4 + 1) and kinds.startswith("('ffn', 'heads', 'conv')")
