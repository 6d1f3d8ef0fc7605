from __future__ import annotations

import pytest

from espnet_todm.util import processor

X86 = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2{more}\n\nprocessor\t: 1\nmodel name\t: Other\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimdhp bf16\n"


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "CPUINFO", path)
    return path


@pytest.mark.parametrize(
    ("text", "bfloat16", "float16"),
    [
        (X86.format(more=""), False, False),
        (X86.format(more=" avx512_bf16"), True, False),
        (X86.format(more=" amx_bf16 avx512_fp16"), True, True),
        (ARM, True, True),
        ("", False, False),
    ],
)
def test_types_that_the_processor_computes_in(cpuinfo, text, bfloat16, float16):
    cpuinfo.write_text(text)
    assert processor.cpu_has("bfloat16") is bfloat16
    assert processor.cpu_has("float16") is float16


def test_the_model_is_the_first_processors(cpuinfo):
    assert processor.cpu_model() != ""
    cpuinfo.write_text(X86.format(more=""))
    assert processor.cpu_model() == "Some CPU"
