"""The check before sherpa-onnx: each fault is one line, and those that are said to end the process do."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from espnet_todm.deploy.runtime import sherpa_subprocess as sherpa_subprocess
from espnet_todm.deploy.runtime.sherpa_check import TRANSDUCER, ZIPFORMER_CTC, Checked, check_for_sherpa
from espnet_todm.deploy.runtime.sherpa_subprocess import transcribe_in_subprocess
from espnet_todm.errors import UserError
from tests.deploy.toy_onnx import SYMBOLS, write_toy_ctc, write_toy_transducer

pytest.importorskip("onnx")
WAVE = np.random.default_rng(0).normal(scale=0.1, size=8000).astype(np.float32)
Fault = Callable[[Path], Any]


def tokens(change: Callable[[list[str]], Any]) -> Fault:
    """A CTC folder whose tokens.txt has other lines."""

    def make(folder: Path) -> None:
        lines = [f"{symbol} {number}" for number, symbol in enumerate(SYMBOLS)]
        change(lines)
        (write_toy_ctc(folder) / "tokens.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    return make


def ctc(change: Callable[[Any], Any]) -> Fault:
    return lambda folder: write_toy_ctc(folder, change=change)


def transducer(part: str, change: Callable[[Any], Any]) -> Fault:
    return lambda folder: write_toy_transducer(folder, change={part: change})


def without(key: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        kept = [entry for entry in model.metadata_props if entry.key != key]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)

    return change


def saying(key: str, value: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        without(key)(model)
        model.metadata_props.add(key=key, value=value)

    return change


def open_vocabulary(model: Any) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_param = "V"


def float_lengths(model: Any) -> None:
    model.graph.input[1].type.tensor_type.elem_type = 1


def blank_last(folder: Path) -> None:
    lines = [*SYMBOLS[1:], SYMBOLS[0]]
    text = "".join(f"{symbol} {number}\n" for number, symbol in enumerate(lines))
    (write_toy_transducer(folder) / "tokens.txt").write_text(text, encoding="utf-8")


FAULTS: dict[str, tuple[Fault, str]] = {
    "no blank": (tokens(lambda lines: lines.__setitem__(0, "blank 0")), "no token is a blank by its name"),
    "a token too few": (tokens(lambda lines: lines.pop()), "has 9 tokens, but model.onnx has 10 outputs"),
    "a token too many": (tokens(lambda lines: lines.append("H 10")), "has 11 tokens, but model.onnx has 10 outputs"),
    "a gap": (tokens(lambda lines: lines.pop(4)), "none with id 4"),
    "an id twice": (tokens(lambda lines: lines.append("H 9")), "id 9 stands twice"),
    "three words": (tokens(lambda lines: lines.__setitem__(5, "C C 5")), "'C C 5' is no token"),
    "no id": (tokens(lambda lines: lines.__setitem__(5, "C five")), "'C five' is no token"),
    "no tokens.txt": (lambda folder: (write_toy_ctc(folder) / "tokens.txt").unlink(), "tokens.txt: no such file"),
    "an open vocabulary": (ctc(open_vocabulary), "must state its last dimension"),
    "lengths in floats": (ctc(float_lengths), "x_lens must be int32 or int64 with 1"),
    "no lengths": (ctc(lambda model: model.graph.output.pop()), "has 1 outputs, but 2 are needed"),
    "a damaged file": (
        lambda folder: (write_toy_ctc(folder) / "model.onnx").write_bytes(b"\x00not a model"),
        "no ONNX file",
    ),
    "no model": (lambda folder: (write_toy_ctc(folder) / "model.onnx").unlink(), "model.onnx: no such file"),
    "no model type": (transducer("encoder", without("model_type")), "model_type: None; allowed: conformer"),
    "another model type": (transducer("encoder", saying("model_type", "lstm")), "model_type: 'lstm'; allowed"),
    "no context size": (transducer("decoder", without("context_size")), "metadata lack context_size"),
    "no vocabulary": (transducer("decoder", without("vocab_size")), "metadata lack vocab_size"),
    "context in words": (transducer("decoder", saying("context_size", "two")), "'two' must be a number"),
    "another context": (transducer("decoder", saying("context_size", "2")), "context_size: 2, but its input takes 3"),
    "another vocabulary": (transducer("decoder", saying("vocab_size", "12")), "say vocab_size: 12"),
    "blank at the end": (blank_last, "id 0 is '<unk>'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line(fault: str, tmp_path: Path) -> None:
    make, words = FAULTS[fault]
    make(tmp_path)
    with pytest.raises(UserError) as caught:
        check_for_sherpa(tmp_path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("write", [write_toy_ctc, write_toy_transducer])
def test_a_good_folder_passes_and_tells_its_features(write: Callable[[Path], Path], tmp_path: Path) -> None:
    kind = ZIPFORMER_CTC if write is write_toy_ctc else TRANSDUCER
    assert check_for_sherpa(write(tmp_path)) == Checked(kind, 80)


@pytest.mark.parametrize("fault", ["no blank", "three words", "no context size", "no vocabulary", "a damaged file"])
def test_what_is_refused_would_have_ended_the_process(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check is not stricter than need be; and where it does not know a fault, ours is not the process that ends."""
    pytest.importorskip("sherpa_onnx")
    FAULTS[fault][0](tmp_path)
    kind = TRANSDUCER if (tmp_path / "encoder.onnx").is_file() else ZIPFORMER_CTC
    monkeypatch.setattr(sherpa_subprocess, "check_for_sherpa", lambda folder, precision: Checked(kind, 80))
    with pytest.raises(UserError, match="ended its process with status") as caught:
        transcribe_in_subprocess(tmp_path, "fp32", 1, [WAVE])
    assert "\n" not in str(caught.value)
