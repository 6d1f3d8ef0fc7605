"""Where the sizes' own output layers and joiners start when a run begins from the weights of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from espnet_todm.decoders.stateless import StatelessDecoder
from espnet_todm.errors import UserError
from espnet_todm.espnet.options import checkpoint_errors
from espnet_todm.espnet.registry import register
from espnet_todm.models.todm import TodmModel
from tests.conftest import conformer, disturb
from tests.tiny_model import TOKENS, tiny_model

OWN = {"output_layers": "per_size"}
SIZES = ("middle", "small")


def load(init_param: str, model: torch.nn.Module, ignore_init_mismatch: bool = False) -> None:
    """As ESPnet's training does it."""
    register()
    from espnet2.tasks import abs_task

    abs_task.load_pretrained_model(init_param=init_param, model=model, ignore_init_mismatch=ignore_init_mismatch)


def save(model: torch.nn.Module, path: Path) -> Path:
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A checkpoint with the shared output layer alone."""
    torch.manual_seed(1)
    model = tiny_model()
    disturb(model)
    return save(model, tmp_path / "shared.pth")


@pytest.mark.parametrize("form", ["{}", "{}:encoder:encoder {}:ctc:ctc", "{}:ctc.ctc_lo:ctc.ctc_lo"])
def test_every_size_starts_from_a_shared_output_layer(shared: Path, form: str) -> None:
    model = tiny_model(model=OWN)
    for init_param in form.format(*[shared] * 2).split():
        load(init_param, model)
    expected = torch.load(shared, weights_only=True)
    for size in ("full", *SIZES):
        assert torch.equal(model.output_layer(size).weight, expected["ctc.ctc_lo.weight"])
        assert torch.equal(model.output_layer(size).bias, expected["ctc.ctc_lo.bias"])


def transducer(**options: Any) -> TodmModel:
    decoder = StatelessDecoder(len(TOKENS), hidden_size=8)
    parts = {"decoder": decoder, "ctc_weight": 0.3, **options}
    return tiny_model(model=parts, supernet=conformer(conv_norm="layer_norm", sizes={"small": {"depth": 0.34}}))


def test_every_size_starts_from_a_shared_joiner(tmp_path: Path) -> None:
    first = transducer()
    disturb(first)
    model = transducer(**OWN)
    load(str(save(first, tmp_path / "shared.pth")), model)
    for name, value in first.joint_network.state_dict().items():
        assert torch.equal(model.size_joints["small"].state_dict()[name], value)
    assert torch.equal(model.size_outputs["small"].weight, first.ctc.ctc_lo.weight)


def test_every_size_starts_from_shared_norms(shared: Path) -> None:
    model = tiny_model(own_affine=True, own_branch_scale=1.0)
    load(str(shared), model)
    for size in SIZES:
        for norm, own in model.encoder.own_pairs(size):
            assert torch.equal(own.weight, norm.weight) and torch.equal(own.bias, norm.bias)
    own = save(model, shared.with_name("own.pth"))
    disturb(model.encoder.own)
    load(str(own), model)
    assert all(
        torch.equal(value, model.state_dict()[name]) for name, value in torch.load(own, weights_only=True).items()
    )


def test_own_layers_of_a_checkpoint_are_kept(tmp_path: Path) -> None:
    first = tiny_model(model=OWN)
    disturb(first)
    model = tiny_model(model=OWN)
    load(str(save(first, tmp_path / "own.pth")), model)
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in model.state_dict().items())


def test_an_encoder_alone_leaves_the_output_layers_as_they_are(shared: Path) -> None:
    model = tiny_model(model=OWN)
    before = {name: value.clone() for name, value in model.state_dict().items() if "encoder" not in name}
    load(f"{shared}:encoder:encoder", model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_other_sizes_are_refused_in_one_line(tmp_path: Path) -> None:
    other = tiny_model(model=OWN, sizes={"tiny": {"depth": 0.34}})
    path = save(other, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"size_outputs\.tiny") as error, checkpoint_errors():
        load(str(path), tiny_model(model=OWN))
    assert "\n" not in str(error.value)
