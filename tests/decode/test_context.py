"""Decoding with another context than the configuration's: the options, what the encoder then computes, and the folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from espnet_todm.bin.score import main as score_main
from hypothesis import given
from hypothesis import strategies as st

from espnet_todm.bin.decode import main as decode_main
from espnet_todm.decode.context import Context, parse_context
from espnet_todm.deploy.extract import extract, load_supernet
from espnet_todm.encoders.chunks import Chunk
from espnet_todm.errors import UserError
from espnet_todm.espnet.load import load_extracted
from espnet_todm.report.experiment import load_experiment
from espnet_todm.util.files import read_json, read_table
from tests.tiny_experiment import write_experiment

STREAMS = {"causal": True, "chunk": {"frames": 3, "left": 5}, "decode_chunk": [2, 3], "conv_norm": "layer_norm"}


@pytest.fixture(scope="module")
def streaming(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment with the extracted size small, and data to decode."""
    root = write_experiment(tmp_path_factory.mktemp("streaming"), **STREAMS)
    supernet = load_supernet(root / "config.yaml", root / "model.pth")
    extract(supernet, supernet.encoder.find_subnet("small"), root / "subnets/small")
    (root / "dump/test").mkdir(parents=True)
    for name in ("feats.scp", "text"):
        (root / "dump/test" / name).write_text((root / name).read_text())
    return root


def arguments(root: Path, *more: str) -> list[str]:
    return [*("--experiment", str(root), "--data", str(root / "dump"), "--sets", "test", "--logs", str(root)), *more]


@given(frames=st.integers(1, 99), left=st.integers(0, 99))
def test_two_numbers_are_a_chunk(frames: int, left: int) -> None:
    context = parse_context([str(frames), str(left)])
    assert context == Context(Chunk(frames, left)) and context.name == f"{frames}_{left}"


@pytest.mark.parametrize("words", [["16"], ["0", "4"], ["4", "-1"], ["1.5", "2"], ["whole"], ["1", "2", "3"], []])
def test_other_values_are_told_in_one_line(words: list[str]) -> None:
    with pytest.raises(UserError, match=r"^chunk: '.*' is not possible; needed: frames .* such as 16 64, or full$"):
        parse_context(words)


def test_a_context_is_what_the_encoder_then_computes(streaming: Path) -> None:
    model, _ = load_extracted(streaming / "subnets/small")
    speech, lengths = torch.randn(1, 120, 20), torch.tensor([120])
    computed = {}
    for name, context in {"own": None, "same": ["2", "3"], "other": ["4", "2"], "full": ["full"]}.items():
        parsed = parse_context(context)
        if parsed is not None:
            parsed.apply(model)
        with torch.no_grad():
            computed[name] = model.encode(speech.clone(), lengths)[0]
    assert torch.equal(computed["own"], computed["same"])
    for name in ("other", "full"):
        assert not torch.allclose(computed["own"], computed[name], atol=1e-3)
    first = speech.clone()
    first[:, 40:] = 0.0  # beyond the first chunk of 4 frames, which 19 input frames make
    Context(Chunk(4, 2)).apply(model)
    with torch.no_grad():
        again = model.encode(first, lengths)[0]
    torch.testing.assert_close(again[:, :4], computed["other"][:, :4])


def test_each_context_has_its_row_in_the_report(streaming: Path) -> None:
    decodes = {"decode": [], "decode_chunk_4_2": ["4", "2"], "decode_chunk_full": ["full"]}
    for folder, chunk in decodes.items():
        decode_main(arguments(streaming, *(["--chunk", *chunk] if chunk else [])))
        assert len(read_table(streaming / folder / "test/small/text")) == 3
        options = ["--experiment", str(streaming), "--data", str(streaming / "dump"), "--sets", "test"]
        score_main([*options, "--decode", folder])
    assert read_json(streaming / "decode_chunk_4_2/test/small/search.json")["chunk"] == "4_2"
    assert "chunk" not in read_json(streaming / "decode/test/small/search.json")
    assert load_experiment(streaming).splits == ("test", "test chunk_4_2", "test chunk_full")


def test_a_model_without_chunks_is_refused(experiment: Path, streaming: Path, tmp_path: Path) -> None:
    supernet = load_supernet(experiment / "config.yaml", experiment / "model.pth")
    for size in ("small", "uneven"):  # ESPnet's own encoder, and ours
        extract(supernet, supernet.encoder.find_subnet(size), tmp_path / "subnets" / size)
        command = ["--experiment", str(tmp_path), "--sizes", size, "--chunk", "16", "64"]
        with pytest.raises(UserError, match="chunk: 16 64 is for models trained with encoder_conf: chunk"):
            decode_main([*arguments(streaming), *command])
    assert not (tmp_path / "decode_chunk_16_64").exists()
