"""README.md of a release: what the model is, how a device runs it, and what was measured of the exported files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from espnet_todm.card import CARD
from espnet_todm.deploy.forms.stock import PYTHON, C
from espnet_todm.deploy.onnx.folder import TOKENS
from espnet_todm.deploy.parity.report import JSON
from espnet_todm.deploy.release import LICENSE, SUMS, Exported
from espnet_todm.errors import UserError
from espnet_todm.espnet.config_inheritance import CONFIG
from espnet_todm.espnet.load import read_config
from espnet_todm.report.measured import RATE_COLUMNS, latency_files, latency_table, latency_words, records_table
from espnet_todm.report.model_card import cost_rows, data_notes, description, score_rows
from espnet_todm.util.acoustics import SAMPLING_RATE
from espnet_todm.util.files import PathLike, read_json, read_optional
from espnet_todm.util.markdown import markdown_table

_RUN = """## Run

```
pip install sherpa-onnx numpy
{commands}
```

`{c}` in the same folder does the same in C; its first lines say how to compile it. The programs use the {precision} files.
Speech has one channel. sherpa-onnx computes the features, and resamples speech of another rate than {rate} Hz.
"""

_BESIDE = {
    TOKENS: "the tokens, each with its number",
    CARD: "costs and origin of the model",
    PYTHON: "the program in Python",
    C: "the program in C",
}


def release_card(exports: Sequence[Exported], data: Optional[str] = None, licence: Optional[PathLike] = None) -> str:
    """The text for :func:`espnet_todm.deploy.release.release` of a size. What was not measured is left blank.

    data: what the scored data are. licence: the file that is released with the model.
    Raises UserError when a file of measurements is damaged.
    """
    folder = exports[0].folder.parent
    config = read_config(folder / CONFIG)
    card = read_json(folder / CARD)
    sections = [
        f"# {card['name']}\n\n{description(card, config)}",
        _run(exports),
        "## Measured\n\n" + markdown_table(["", ""], (*cost_rows(card), *score_rows(folder))),
        data_notes(config, data),
        *_speed(folder),
        *(section for export in exports for section in _parity(export)),
        *(note for export in exports for note in export.form.notes(read_json(export.folder / CARD))),
        "## Files\n\n" + "".join(f"- `{name}`: {about}\n" for name, about in _files(exports, licence)),
        _licence(licence),
    ]
    return "\n".join(sections)


def _run(exports: Sequence[Exported]) -> str:
    """How to run the programs of each export."""
    commands = "\n".join(f"python {export.folder.name}/{PYTHON} speech.wav" for export in exports)
    precision = " and ".join(dict.fromkeys(next(iter(export.models)) for export in exports))
    return _RUN.format(commands=commands, c=C, precision=precision, rate=SAMPLING_RATE)


def _speed(folder: Path) -> Iterator[str]:
    """What ``bench models`` measured of this size, if its experiment has such a file."""
    for path in filter(Path.is_file, latency_files(folder.resolve().parent.parent)):
        stored = read_optional(path)
        try:
            words, table = latency_words(stored), latency_table(stored, folder.resolve().name)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: no file of bench models ({error!r}); make it again or remove it") from None
        if table.rows:
            yield f"### Speed\n\n{words}\n\n{table.markdown()}"


def _parity(export: Exported) -> Iterator[str]:
    """Word error rates of the runtimes on the speech of the parity gate, or that the gate was skipped."""
    title = f"### `{export.folder.name}` against PyTorch\n\n"
    path = export.folder / JSON
    if not path.is_file():
        yield f"{title}Not compared: the files were exported without the parity gate.\n"
        return
    report: Mapping[str, Any] = read_json(path)
    try:
        versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
        words = f"{report['utterances']} utterances, {report['words']} words; {versions}.\n\n"
        table = records_table(report["rates"], [column for column in RATE_COLUMNS if column.key != "model"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: no file of the parity gate ({error!r}); export the size again") from None
    yield title + words + table.markdown()


def _files(exports: Sequence[Exported], licence: Optional[PathLike]) -> Iterator[tuple[str, str]]:
    """Path -> what the file is."""
    for export in exports:
        takes = "speech in chunks" if export.form.in_chunks else "whole utterances"
        models = "; ".join(
            f"{precision}: " + ", ".join(f"`{graph.path.name}`" for graph in model.graphs.values())
            for precision, model in export.models.items()
        )
        yield f"{export.folder.name}/", f"takes {takes}; {models}"
    for name, about in _BESIDE.items():
        yield name, f"{about}, in each of these folders"
    if licence is not None:
        yield LICENSE, "the licence"
    yield SUMS, f"checksums of all files: `sha256sum -c {SUMS}`"


def _licence(licence: Optional[PathLike]) -> str:
    told = (
        f"See `{LICENSE}`."
        if licence is not None
        else "None was given with this release; ask those who made the model."
    )
    return f"## Licence\n\n{told}\n"
