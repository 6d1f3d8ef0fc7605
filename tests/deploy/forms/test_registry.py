"""Which form a model and a folder are of."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from espnet_todm.deploy.forms.registry import FORMATS, FORMS, exported_files, form_for, form_of, named
from espnet_todm.deploy.onnx.export import ExportOptions
from espnet_todm.errors import UserError
from tests.tiny_training import python


def test_names_and_places_are_unambiguous() -> None:
    assert FORMATS == ("onnx", "streaming-onnx")
    assert len({form.name for form in FORMS}) == len(FORMS)
    assert [named(form.name) for form in FORMS] == list(FORMS)


def test_a_folder_is_of_the_first_form_that_recognises_it() -> None:
    assert form_of(["joiner", "encoder", "decoder"], {"model_type": "zipformer2"}).name == "transducer"
    assert form_of(["joiner", "encoder", "decoder"], {"decode_chunk_len": "64"}).name == "streaming_transducer"
    assert form_of(["model"], {"decode_chunk_len": "64"}).name == "streaming_ctc"
    assert form_of(["model"], {}).name == "ctc"


@pytest.mark.parametrize("transducer", [True, False])
def test_a_format_has_a_form_for_each_kind_of_model(transducer: bool) -> None:
    model = SimpleNamespace(use_transducer_decoder=transducer)
    assert form_for(model, "onnx").name == ("transducer" if transducer else "ctc")
    assert form_for(model, "streaming-onnx").name == ("streaming_transducer" if transducer else "streaming_ctc")


def test_an_unknown_format_is_one_line() -> None:
    with pytest.raises(UserError, match="format: 'tflite' is unknown; allowed: onnx, streaming-onnx"):
        ExportOptions(format="tflite")


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model.onnx: no such file; the folder has precision: none at all"):
        exported_files(tmp_path)
    (tmp_path / "encoder.int8.onnx").touch()
    with pytest.raises(UserError, match=r"encoder.onnx: no such file; the folder has precision: int8"):
        exported_files(tmp_path)


def test_forms_need_no_torch() -> None:
    """The process in which a model is timed imports them, and its memory would be PyTorch's."""
    assert (
        python(["-c", "import sys, espnet_todm.deploy.forms.registry; sys.exit('torch' in sys.modules)"]).returncode
        == 0
    )
