"""Decoding with another context than the configuration's: the options, what the encoder then computes, and the folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from espnet_todm.bin.score import main as score_main
from hypothesis import given
from hypothesis import strategies as st

from espnet_todm.bin.decode import main as decode_main
from espnet_todm.decode.context import Context, output_folders, parse_contexts
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
    (context,) = parse_contexts([str(frames), str(left)])
    assert context == Context(Chunk(frames, left)) and context.name == f"{frames}_{left}"


def test_several_contexts_stand_in_a_row() -> None:
    contexts = parse_contexts(["full", "32", "64", "16", "64", "full"])
    assert contexts == [Context(None), Context(Chunk(32, 64)), Context(Chunk(16, 64)), Context(None)]
    assert output_folders(contexts[:3]) == ["decode_chunk_full", "decode_chunk_32_64", "decode_chunk_16_64"]
    assert output_folders(contexts[:2], "mine") == ["mine_chunk_full", "mine_chunk_32_64"]
    assert output_folders(contexts[:1], "mine") == ["mine"]
    assert (parse_contexts(None), output_folders([None])) == ([None], ["decode"])


@pytest.mark.parametrize(
    "words", [["16"], ["0", "4"], ["4", "-1"], ["1.5", "2"], ["whole"], ["1", "2", "3"], ["full", "2"], []]
)
def test_other_values_are_told_in_one_line(words: list[str]) -> None:
    with pytest.raises(
        UserError,
        match=r"^chunk: '.*' is not possible; needed: frames .* such as 16 64, or full; also several of them$",
    ):
        parse_contexts(words)


def test_a_context_is_what_the_encoder_then_computes(streaming: Path) -> None:
    model, _ = load_extracted(streaming / "subnets/small")
    speech, lengths = torch.randn(1, 120, 20), torch.tensor([120])
    computed = {}
    for name, context in {"own": None, "same": ["2", "3"], "other": ["4", "2"], "full": ["full"]}.items():
        (parsed,) = parse_contexts(context)
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


def test_one_table_has_a_row_for_each_context(streaming: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands of docs/streaming.md: one size with full context and with several chunks, beside the configuration's."""
    decode_main(arguments(streaming))
    decode_main(arguments(streaming, "--chunk", "full", "4", "2"))
    folders = ["decode", "decode_chunk_full", "decode_chunk_4_2"]
    options = ["--experiment", str(streaming), "--data", str(streaming / "dump"), "--sets", "test", "--sizes", "small"]
    capsys.readouterr()
    score_main([*options, "--decode", *folders])
    words, characters = capsys.readouterr().out.split("### CER")
    for table in (words, characters):
        rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("|test")]
        assert rows == ["test/small", "test chunk_full/small", "test chunk_4_2/small"]
    texts = [read_table(streaming / folder / "test/small/text") for folder in folders]
    assert all(len(text) == 3 for text in texts)
    settings = [read_json(streaming / folder / "test/small/search.json").get("chunk") for folder in folders]
    assert settings == [None, "full", "4_2"]
    assert load_experiment(streaming).splits == ("test", "test chunk_4_2", "test chunk_full")


def test_a_model_without_chunks_is_refused(experiment: Path, streaming: Path, tmp_path: Path) -> None:
    supernet = load_supernet(experiment / "config.yaml", experiment / "model.pth")
    for size in ("small", "uneven"):  # ESPnet's own encoder, and ours
        extract(supernet, supernet.encoder.find_subnet(size), tmp_path / "subnets" / size)
        command = ["--experiment", str(tmp_path), "--sizes", size, "--chunk", "16", "64"]
        with pytest.raises(UserError, match="chunk: 16 64 is for models trained with encoder_conf: chunk"):
            decode_main([*arguments(streaming), *command])
    assert not (tmp_path / "decode_chunk_16_64").exists()
