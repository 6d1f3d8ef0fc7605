"""What is decoded does not depend on which utterances share a batch, whatever form an extracted model has."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from espnet_todm.decode.decode import Decoder
from espnet_todm.deploy.extract import extract, load_supernet
from espnet_todm.espnet.load import load_extracted
from tests.tiny_experiment import write_experiment

FORMS = {  # the class of an extracted encoder: its supernet and size
    "ConformerEncoder": ("todm_conformer", "small"),
    "TodmConformerEncoder": ("todm_conformer", "uneven"),
    "EBranchformerEncoder": ("todm_e_branchformer", "small"),
    "TodmMhSsmEncoder": ("todm_mh_ssm", "small"),
}


@pytest.fixture(scope="module", params=FORMS)
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    encoder, size = FORMS[request.param]
    sizes = {"small": {"depth": 0.5, "ffn": 0.5}, "uneven": {"ffn": [4, 1, 2, 3]}}
    root = write_experiment(tmp_path_factory.mktemp(size), encoder, sizes={size: sizes[size]})
    supernet = load_supernet(root / "config.yaml", root / "model.pth")
    extract(supernet, supernet.encoder.find_subnet(size), root / "small")
    model, config = load_extracted(root / "small")
    assert type(model.encoder).__name__ == request.param
    return Decoder(model, config)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 70), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_a_batch_is_its_utterances_one_by_one(decoder: Decoder, lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = [torch.randn(length, 20, generator=generator) for length in [*lengths, lengths[0]]]  # two of one length
    together = decoder.log_posteriors(batch)
    for utterance, posteriors in zip(batch, together):
        (alone,) = decoder.log_posteriors([utterance])
        assert posteriors.shape == alone.shape
        np.testing.assert_allclose(posteriors, alone, atol=1e-5)
    assert decoder(batch) == [text for utterance in batch for text in decoder([utterance])]


def test_espnets_own_encoders_are_why(decoder: Decoder) -> None:
    """Padded together as ours are, the shorter utterance comes out as another one."""
    name, short = type(decoder.model.encoder).__name__, torch.randn(50, 20)
    with torch.no_grad():
        padded = torch.nn.functional.pad(short, (0, 0, 0, 30))
        encoded, lengths = decoder.model.encode(torch.stack([padded, torch.randn(80, 20)]), torch.tensor([50, 80]))
        alone, length = decoder.model.encode(short[None], torch.tensor([50]))
    frames = int(length)
    same = int(lengths[0]) == frames and torch.allclose(encoded[0, :frames], alone[0], atol=1e-4)
    assert same == name.startswith("Todm")
