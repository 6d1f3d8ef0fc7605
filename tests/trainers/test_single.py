"""Plain training of one fixed size."""

from __future__ import annotations

import pytest
import torch

from espnet_todm.errors import UserError
from espnet_todm.trainers.single import SingleTrainer
from espnet_todm.util.checks import build
from espnet_todm.util.files import write_json
from tests.tiny_model import batch, run, tiny_model, trained_by


@pytest.mark.parametrize("size", ["full", "middle", "small"])
def test_trains_as_the_extracted_model_would(size: str) -> None:
    model, of = trained_by(SingleTrainer, size=size), batch()
    loss, stats = run(model, of)
    loss.backward()
    assert set(stats) == {"loss", "loss_ctc", f"loss_{size}"}

    subnet = model.encoder.sizes[size]
    small = tiny_model()
    small.load_state_dict(model.state_dict())
    small.encoder = model.encoder.extract(subnet)
    plain = small.train().run_subnet(small.run_subsampling(of), of, small.encoder.subnet).loss
    plain.backward()
    torch.testing.assert_close(loss.detach(), plain.detach())
    torch.testing.assert_close(model.ctc.ctc_lo.weight.grad, small.ctc.ctc_lo.weight.grad, atol=1e-5, rtol=1e-4)
    embeds = (model.encoder.embed, small.encoder.embed)
    for ours, theirs in zip(*(embed.parameters() for embed in embeds)):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)


def test_picks_and_evaluates_its_size_alone(tmp_path) -> None:
    model = tiny_model()
    card = tmp_path / "card.json"
    write_json(card, {"name": "mine", "kept": model.encoder.sizes["small"].to_json()})
    trainer = SingleTrainer(model, size=str(card))
    assert trainer.picked(0) == trainer.picked(9) == trainer.evaluated(model, None)
    assert trainer.picked(0)[0].components == model.encoder.sizes["small"].components


def test_unknown_size_and_option_are_named() -> None:
    model = tiny_model()
    with pytest.raises(UserError, match=r"'tiny'.*full, middle, small"):
        SingleTrainer(model, size="tiny")
    with pytest.raises(UserError, match=r"subnet_trainer_conf: unknown key 'sise'; allowed: seed, size"):
        build(SingleTrainer, {"sise": "small"}, "subnet_trainer_conf", model, seed=0)
