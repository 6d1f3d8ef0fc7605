"""Parts of encoders in onnxruntime: the same numbers as in PyTorch, and a table that training reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from espnet_todm.bin.measure_latency import main

import espnet_todm
from espnet_todm.bench.components.measure import Calls, measure_latency
from espnet_todm.bench.components.parts import Probe, parts
from espnet_todm.deploy.extract import load_supernet
from espnet_todm.encoders.latency import load_latency
from espnet_todm.errors import UserError
from tests.conftest import conformer

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from espnet_todm.bench.components.onnx import converted, onnx_calls

espnet_todm.register()


@torch.no_grad()
def test_every_part_computes_what_it_computes_in_pytorch() -> None:
    encoder = conformer(num_blocks=2).eval()
    timed = parts(encoder, torch.randn(1, 90, encoder.input_size), [encoder.component_table().full()], converted)
    assert {probe.part for probe in timed} == {"front", "finalise", "norm", "block", "whole"}
    for probe, call in onnx_calls(timed, threads=1).items():
        expected = timed[probe].module(*timed[probe].inputs)
        for value, other in zip(call(), expected if isinstance(expected, tuple) else [expected]):
            np.testing.assert_allclose(value, other.numpy(), atol=1e-4, err_msg=str(probe))


def test_a_table_of_onnxruntime_says_so_and_is_read_by_training(experiment: Path, tmp_path: Path, capsys) -> None:
    output = tmp_path / "latency.json"
    command = ["--config", str(experiment / "config.yaml"), "--output", str(output)]
    main([*command, "--seconds", "1", "--rounds", "1", "--runtime", "onnxruntime"])
    assert "in onnxruntime on" in capsys.readouterr().out
    encoder = load_supernet(experiment / "config.yaml", experiment / "model.pth").encoder
    loaded = load_latency(output, encoder, encoder.component_table())
    assert loaded.machine["runtime"] == "onnxruntime" and loaded.machine["onnxruntime"]
    assert loaded.rest > 0 and loaded.report["held_out"]["subnets"] == 12


def test_an_unknown_runtime_is_refused() -> None:
    def never(calls: Calls, rounds: int) -> Mapping[Probe, float]:
        raise AssertionError

    with pytest.raises(UserError, match=r"runtime: 'tvm' is unknown; allowed: torch, onnxruntime"):
        measure_latency(conformer(num_blocks=1), 2.0, timer=never, runtime="tvm")
