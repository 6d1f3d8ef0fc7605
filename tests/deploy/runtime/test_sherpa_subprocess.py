"""Faults of a folder: one line each, whether they are seen before sherpa-onnx is started or it ends its process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from espnet_todm.deploy.runtime.recognizer import as_sherpa_writes
from espnet_todm.deploy.runtime.sherpa_subprocess import make_order, transcribe_in_subprocess
from espnet_todm.errors import UserError
from tests.deploy.toy_onnx import SYMBOLS, write_toy_ctc, write_toy_transducer

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
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


# What sherpa-onnx would make wrong texts of, or would end the process for without saying why.
FAULTS: dict[str, tuple[Fault, str]] = {
    "no blank": (tokens(lambda lines: lines.__setitem__(0, "blank 0")), "no token is a blank by its name"),
    "a token too few": (tokens(lambda lines: lines.pop()), "has 9 tokens, but model.onnx has as outputs: 10"),
    "a token too many": (
        tokens(lambda lines: lines.append("H 10")),
        "has 11 tokens, but model.onnx has as outputs: 10",
    ),
    "a gap": (tokens(lambda lines: lines.pop(4)), "none with id 4"),
    "an id twice": (tokens(lambda lines: lines.append("H 9")), "id 9 stands twice"),
    "three words": (tokens(lambda lines: lines.__setitem__(5, "C C 5")), "'C C 5' is no token"),
    "no id": (tokens(lambda lines: lines.__setitem__(5, "C five")), "'C five' is no token"),
    "no tokens.txt": (lambda folder: (write_toy_ctc(folder) / "tokens.txt").unlink(), "tokens.txt: no such file"),
    "a damaged file": (
        lambda folder: (write_toy_ctc(folder) / "model.onnx").write_bytes(b"\x00not a model"),
        "model.onnx: onnxruntime cannot load it",
    ),
    "no model": (lambda folder: (write_toy_ctc(folder) / "model.onnx").unlink(), "model.onnx: no such file"),
    "no context size": (transducer("decoder", without("context_size")), "metadata have no context_size"),
    "context in words": (transducer("decoder", saying("context_size", "two")), "metadata have no context_size"),
    "another vocabulary": (transducer("decoder", saying("vocab_size", "12")), "metadata say vocab_size: 12"),
    "blank at the end": (blank_last, "id 0 is '<unk>'"),
}
# What it tells by itself; the process that it ends is another one.
TOLD: dict[str, Fault] = {
    "no vocabulary": transducer("decoder", without("vocab_size")),
    "another context": transducer("decoder", saying("context_size", "2")),
    "lengths in floats": ctc(float_lengths),
    "no lengths": ctc(lambda model: model.graph.output.pop()),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line(fault: str, tmp_path: Path) -> None:
    make, words = FAULTS[fault]
    make(tmp_path)
    with pytest.raises(UserError) as caught:
        make_order(tmp_path, "fp32", 1)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("write", [write_toy_ctc, write_toy_transducer])
def test_a_good_folder_passes_and_tells_its_features(write: Callable[[Path], Path], tmp_path: Path) -> None:
    order = make_order(write(tmp_path), "fp32", 1)
    assert order["form"] == ("ctc" if write is write_toy_ctc else "transducer")
    assert order["arguments"]["feature_dim"] == 80 and not order["details"]


@pytest.mark.parametrize("fault", TOLD)
def test_what_sherpa_onnx_tells_is_one_line(fault: str, tmp_path: Path) -> None:
    pytest.importorskip("sherpa_onnx")
    TOLD[fault](tmp_path)
    with pytest.raises(UserError, match=r"ended its process with status|onnxruntime cannot load it") as caught:
        transcribe_in_subprocess(tmp_path, "fp32", 1, [WAVE])
    assert "\n" not in str(caught.value)


def test_a_vocabulary_that_the_graph_leaves_open_is_none_to_compare(tmp_path: Path) -> None:
    pytest.importorskip("sherpa_onnx")
    ctc(open_vocabulary)(tmp_path / "open")
    write_toy_ctc(tmp_path / "stated")
    texts = [transcribe_in_subprocess(tmp_path / name, "fp32", 1, [WAVE]) for name in ("open", "stated")]
    assert texts[0] == texts[1] != [""]


@pytest.mark.parametrize(
    "text, written",
    [("SHE 'LL GO", "SHE'LL GO"), ("A - B", "A- B"), ("你 好 MA", "你好 MA"), ("好 。", "好。"), ("A B", "A B")],
)
def test_sherpa_onnx_writes_some_spaces_not(text: str, written: str) -> None:
    assert as_sherpa_writes(text) == written == as_sherpa_writes(written)
