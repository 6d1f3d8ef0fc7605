"""Chunks: what a frame sees, what is drawn, and that the mask, the streaming form and whole utterances agree."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_todm.encoders.chunks import Chunk, ChunkOptions
from espnet_todm.encoders.stack import StackedEncoder
from espnet_todm.encoders.streaming import StreamingEncoder
from espnet_todm.errors import UserError
from tests.conftest import conformer, e_branchformer, mh_ssm, random_subnet, speech
from tests.tiny_model import batch, tiny_model

CHUNK = {"frames": [2, 5], "left": [0, 7], "full_share": 0.25}
FLAVOURS: dict[str, dict[str, Any]] = {
    "relative": {},
    "layer norm, channel groups": {"conv_norm": "layer_norm", "conv_groups": 4, "head_dim": 6},
    "no positions": {"pos_enc_layer_type": "none", "selfattention_layer_type": "selfattn", "macaron_style": False},
    "convolution first": {"convolution_first": True, "conv_groups": 2, "input_layer": "conv2d6"},
    "no convolution": {"use_cnn_module": False, "input_layer": "dw_conv2d"},
    "long filters": {"cnn_module_kernel": 9, "input_layer": "conv2d2", "input_channels": 6},
}
STATE_SPACES: dict[str, dict[str, Any]] = {
    "state spaces": {},
    "state spaces in series": {"ssm_stack": 2, "head_gating": False},
    "state spaces, convolution": {"use_cnn_module": True, "causal": True, "cnn_module_kernel": 5, "conv_groups": 2},
    "Stateformer": {
        "attention_heads": 4,
        "pos_enc_layer_type": "rel_pos",
        "selfattention_layer_type": "rel_selfattn",
        "chunk": CHUNK,
        "use_cnn_module": True,
        "causal": True,
        "cnn_module_kernel": 5,
    },
}
ALL = sorted([*FLAVOURS, *STATE_SPACES])
MADE: dict[str, StackedEncoder] = {}


def streaming(name: str = "relative") -> StackedEncoder:
    """A causal encoder of a flavour; do not change it."""
    if name not in MADE:
        made = mh_ssm(bidirectional=False, **STATE_SPACES[name]) if name in STATE_SPACES else None
        MADE[name] = made or conformer(causal=True, chunk=CHUNK, **FLAVOURS[name])
    return MADE[name]


def masked(encoder: StackedEncoder, chunk: Chunk, x: torch.Tensor, lengths: torch.Tensor, subnet: Any) -> Any:
    subsampled = encoder.subsample(x, lengths)
    visible = subsampled.mask & chunk.visible(subsampled.hidden.size(1))
    return encoder.blocks(replace(subsampled, visible=visible), subnet)


def test_a_frame_sees_its_chunk_and_the_left_context() -> None:
    visible = Chunk(frames=3, left=2).visible(8)
    assert [row.nonzero().flatten().tolist() for row in visible] == 3 * [[0, 1, 2]] + 3 * [[1, 2, 3, 4, 5]] + 2 * [
        [4, 5, 6, 7]
    ]


@given(seed=st.integers(0, 1000), step=st.integers(0, 10**6))
def test_draws_depend_on_seed_and_step_alone(seed: int, step: int) -> None:
    options = ChunkOptions(frames=(2, 5), left=(0, 7), seed=seed)
    drawn = options.draw(step)
    assert drawn == ChunkOptions(frames=(2, 5), left=(0, 7), seed=seed).draw(step)
    assert drawn is None or (2 <= drawn.frames <= 5 and 0 <= drawn.left <= 7)


def test_draws_cover_their_ranges_and_full_context() -> None:
    drawn = [ChunkOptions(frames=(2, 5), left=8, full_share=0.25).draw(step) for step in range(400)]
    chunks = [chunk for chunk in drawn if chunk is not None]
    assert 60 <= 400 - len(chunks) <= 140
    assert {chunk.frames for chunk in chunks} == {2, 3, 4, 5} and {chunk.left for chunk in chunks} == {8}
    assert all(ChunkOptions(4, 8, full_share=0.0).draw(step) == Chunk(4, 8) for step in range(20))


@settings(max_examples=40)
@given(
    name=st.sampled_from(ALL),
    seed=st.integers(0, 1000),
    chunk=st.builds(Chunk, frames=st.integers(1, 6), left=st.integers(0, 9)),
    frames=st.integers(40, 90),
)
@torch.no_grad()
def test_streaming_is_the_masked_whole_utterance(name: str, seed: int, chunk: Chunk, frames: int) -> None:
    encoder = streaming(name)
    subnet = random_subnet(encoder, seed)
    x, lengths = speech(2, frames, seed)
    expected = masked(encoder, chunk, x, lengths, subnet)
    form = StreamingEncoder(encoder, chunk, subnet)
    together = torch.cat(list(form.utterance(x)), dim=1)
    torch.testing.assert_close(together, expected, atol=1e-4, rtol=0)


@settings(max_examples=20)
@given(
    name=st.sampled_from(sorted(FLAVOURS)),
    seed=st.integers(0, 1000),
    chunk=st.builds(Chunk, frames=st.integers(1, 4), left=st.integers(0, 6)),
    boundary=st.integers(1, 3),
)
@torch.no_grad()
def test_nothing_right_of_a_chunk_leaks(name: str, seed: int, chunk: Chunk, boundary: int) -> None:
    encoder = streaming(name)
    form, subnet = StreamingEncoder(encoder, chunk), random_subnet(encoder, seed)
    x, lengths = speech(1, 110, seed)
    safe = boundary * chunk.frames
    last = (boundary - 1) * form.shift + form.window  # of the input frames that the chunk may look at
    other = x.clone()
    other[:, last:] += 10 * torch.randn_like(other[:, last:])
    before, after = masked(encoder, chunk, x, lengths, subnet), masked(encoder, chunk, other, lengths, subnet)
    assert torch.equal(before[:, :safe], after[:, :safe])
    other[:, last - 1] += 10.0  # the last frame that it may look at
    assert not torch.equal(before[:, :safe], masked(encoder, chunk, other, lengths, subnet)[:, :safe])


@settings(max_examples=20)
@given(name=st.sampled_from(ALL), seed=st.integers(0, 1000), frames=st.lists(st.integers(30, 80), min_size=3))
@torch.no_grad()
def test_batch_of_n_is_n_batches_of_one(name: str, seed: int, frames: list[int]) -> None:
    encoder, chunk = streaming(name), Chunk(3, 4)
    x, lengths = speech(len(frames), max(frames), seed)[0], torch.tensor(frames)
    subnet = random_subnet(encoder, seed)
    padded = masked(encoder, chunk, x, lengths, subnet)
    for row, length in enumerate(frames):
        alone = masked(encoder, chunk, x[row : row + 1, :length], torch.tensor([length]), subnet)
        torch.testing.assert_close(padded[row : row + 1, : alone.size(1)], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["conformer", "mh_ssm"])
def test_extracted_model_streams_as_the_slice_does(name: str) -> None:
    made = {"conformer": conformer, "mh_ssm": partial(mh_ssm, bidirectional=False, use_cnn_module=True)}
    encoder, chunk = made[name](causal=True, decode_chunk=[3, 4], conv_groups=2), Chunk(3, 4)
    subnet = random_subnet(encoder, 7)
    small = encoder.extract(subnet)
    x, lengths = speech(2, 75)
    assert small.decode_chunk == chunk and small.options.causal is True
    ours, form = StreamingEncoder(small, chunk), StreamingEncoder(encoder, chunk, subnet)
    assert [cache.shape for cache in ours.initial(2)] == [cache.shape for cache in form.initial(2)]
    expected = encoder.blocks(encoder.subsample(x, lengths), subnet)
    torch.testing.assert_close(small(x, lengths)[0], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat(list(ours.utterance(x)), 1), expected, atol=1e-4, rtol=0)


def test_gates_see_chunks_as_slices_do() -> None:
    encoder = streaming("layer norm, channel groups")
    subnet = random_subnet(encoder, 3)
    subsampled = replace(encoder.subsample(*speech(2, 60)))
    subsampled = replace(subsampled, visible=subsampled.mask & Chunk(2, 3).visible(subsampled.hidden.size(1)))
    gates = {
        (layer, name): torch.tensor(
            [float(i in subnet.layers.get(layer, {}).get(name, ())) for i in range(module.components)]
        )
        for layer, block in enumerate(encoder.encoders)
        for name, _, module in block.elastic_modules()
    }
    torch.testing.assert_close(
        encoder.blocks(subsampled, gates=gates), encoder.blocks(subsampled, subnet), atol=1e-5, rtol=1e-4
    )


def test_training_draws_and_validation_takes_the_stated_chunk() -> None:
    chunk = {"frames": [1, 4], "left": [0, 6], "full_share": 0.5}
    model = tiny_model(causal=True, chunk=chunk, decode_chunk=[2, 3])
    options, seen = model.encoder.chunk_options, set()
    for step in range(12):
        subsampled = model.run_subsampling(replace(batch(), context=model.train().context(step)))
        drawn = options.draw(step)
        seen.add(drawn is None)
        if drawn is None:
            assert subsampled.visible is None
        else:
            expected = subsampled.mask & drawn.visible(subsampled.hidden.size(1))
            assert torch.equal(subsampled.visible, expected)
    assert seen == {True, False}
    subsampled = model.eval().run_subsampling(batch())
    assert torch.equal(subsampled.visible, subsampled.mask & Chunk(2, 3).visible(subsampled.hidden.size(1)))
    plain = tiny_model(causal=True, chunk=chunk).eval().run_subsampling(batch())
    assert plain.visible is None


def test_causal_encoder_has_no_stock_form() -> None:
    encoder = conformer(causal=True)
    assert encoder.stock_conf(encoder.component_table().full()) is None


@pytest.mark.parametrize(
    "options, words",
    [
        ({"chunk": 16}, "chunk: 16 must be a mapping of frames, left, full_share, seed"),
        ({"chunk": {"frames": 4, "left": 4, "size": 3}}, "chunk: unknown key 'size'; allowed: frames, left"),
        ({"chunk": {"frames": 4}}, "chunk: lacks left"),
        ({"chunk": {"frames": [8, 4], "left": 4}}, r"chunk.frames: \[8, 4\] must be .* from 1 or \[lowest, highest\]"),
        ({"chunk": {"frames": 0, "left": 4}}, "chunk.frames: 0 must be a whole number"),
        ({"chunk": {"frames": 4, "left": -1}}, "chunk.left: -1 must be a whole number of encoder frames from 0"),
        ({"chunk": {"frames": 4, "left": 4, "full_share": 2}}, "chunk.full_share: 2 is not allowed"),
        ({"chunk": {"frames": 4, "left": 4, "seed": "a"}}, "chunk.seed: 'a' must be a whole number"),
        ({"decode_chunk": 16}, r"decode_chunk: 16 must be \[frames of a chunk, frames of left context\]"),
        ({"decode_chunk": [0, 16]}, r"decode_chunk\[0\]: 0 must be a whole number of encoder frames from 1$"),
        ({"decode_chunk": [4, [1, 2]]}, r"decode_chunk\[1\]: \[1, 2\] must be"),
        ({"decode_chunk": [4, 4], "causal": False}, "decode_chunk: needs causal: true"),
        (
            {"decode_chunk": [4, 4], "pos_enc_layer_type": "abs_pos", "selfattention_layer_type": "selfattn"},
            "decode_chunk: pos_enc_layer_type: 'abs_pos' counts",
        ),
        ({"decode_chunk": [4, 4], "input_layer": "vgg4"}, "decode_chunk: input_layer: 'vgg4' pads inside of speech"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        conformer(**{"causal": True, **options})


def test_an_encoder_that_is_not_causal_cannot_stream() -> None:
    for encoder, words in (
        (conformer(), "needs causal: true"),
        (mh_ssm(), "needs bidirectional: false"),
        (mh_ssm(bidirectional=False, use_cnn_module=True), "needs causal: true"),
        (e_branchformer(), "sees all of an utterance; allowed: todm_conformer, todm_mh_ssm"),
    ):
        with pytest.raises(UserError, match=f"streaming: .*{words}"):
            StreamingEncoder(encoder, Chunk(4, 4))


def test_chunks_without_attention_to_mask_are_told() -> None:
    with pytest.raises(UserError, match="chunk: masks attention, and attention_heads is 0; leave it out"):
        mh_ssm(bidirectional=False, chunk=CHUNK)
    assert mh_ssm(bidirectional=False, decode_chunk=[1, 1]).decode_chunk == Chunk(1, 1)
