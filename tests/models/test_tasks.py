"""Losses and distillation of an attention decoder, and parts before and behind the encoder that all sizes share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Optional

import pytest
import torch
from espnet.nets.pytorch_backend.nets_utils import th_accuracy
from espnet.nets.pytorch_backend.transformer.add_sos_eos import add_sos_eos
from espnet2.asr.ctc import CTC
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.asr.postencoder.length_adaptor_postencoder import LengthAdaptorPostEncoder
from espnet2.asr.preencoder.linear import LinearProjection

from espnet_todm.deploy.extract import calibration_fronts
from espnet_todm.errors import UserError
from espnet_todm.losses.alpha_divergence import Divergence
from espnet_todm.losses.distillation import ctc_frame_distillation
from espnet_todm.models.batch import Batch
from espnet_todm.models.tasks import accuracy, after_encoder, with_ends
from espnet_todm.models.todm import TodmModel
from espnet_todm.trainers.kd import KDTrainer
from tests.conftest import disturb, flop_counter
from tests.models.test_transducer import transducer
from tests.tiny_model import TOKENS, batch, gradients, run, tiny_model, trained_by

KL = Divergence("kl")


def surrounded(ctc_weight: float = 0.3, adaptor: int = 1, width: Optional[int] = 16, **model: Any) -> TodmModel:
    """A model with a linear pre-encoder from 20 to 20 features and a length adaptor of so many layers behind the encoder."""
    torch.manual_seed(0)
    kind = {"input_layer": "linear", "output_size": width} if width else {}
    parts = {
        "preencoder": LinearProjection(20, 20, dropout=0.0),
        "postencoder": LengthAdaptorPostEncoder(16, adaptor, dropout_rate=0.0, **kind),
    }
    made = tiny_model(ctc_weight, {**parts, **model})
    disturb(made.preencoder)
    disturb(made.postencoder)
    return made


@pytest.mark.parametrize("ctc_weight", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("adaptor", [0, 1, 2])
def test_with_parts_around_the_encoder_it_is_what_espnets_model_computes(ctc_weight: float, adaptor: int) -> None:
    model, of = surrounded(ctc_weight, adaptor).eval(), batch(frames=90)
    stock, _, _ = ESPnetASRModel.forward(model, of.speech, of.speech_lengths, of.text, of.text_lengths)
    ours = model.run_subnet(model.run_subsampling(of), of, model.encoder.sizes["full"]).loss
    torch.testing.assert_close(ours, stock.squeeze())


@pytest.mark.parametrize("width", [None, 24])
def test_a_transducer_gets_what_the_post_encoder_makes(width: Optional[int]) -> None:
    options = {"input_layer": "linear", "output_size": width} if width else {}
    parts = {"postencoder": LengthAdaptorPostEncoder(16, 1, **options), "preencoder": LinearProjection(20, 20)}
    model = transducer(model={**parts, "transducer_conf": {"prune_range": 3}})
    loss, _ = run(model, batch(3, frames=90))
    loss.backward()
    assert all(g is not None and torch.isfinite(g).all() for g in gradients(model).values())
    if width is not None:
        with pytest.raises(UserError, match="postencoder: makes 24 channels of 16"):
            transducer("lstm", model=parts)


def test_every_part_around_the_encoder_learns_once_from_all_sizes() -> None:
    model = surrounded().train()
    model.subnet_trainer = KDTrainer(model)
    loss, stats = run(model, batch(3, frames=90))
    loss.backward()
    assert {"kd_middle", "kd_small", "acc", "loss_att"} <= stats.keys()
    assert all(g is not None and torch.isfinite(g).all() and g.any() for g in gradients(model).values())


def test_padding_never_changes_a_result_of_theirs() -> None:
    model, of = surrounded(adaptor=2).eval(), batch(3, frames=97)

    def loss(rows: slice, padding: int) -> torch.Tensor:
        fields = (of.speech[rows], of.speech_lengths[rows], of.text[rows], of.text_lengths[rows])
        some = Batch(torch.nn.functional.pad(fields[0], (0, 0, 0, padding), value=7.0), *fields[1:])
        return model.run_subnet(model.run_subsampling(some), some, model.encoder.sizes["small"]).loss

    alone = torch.stack([loss(slice(n, n + 1), 0) for n in range(3)]).mean()
    torch.testing.assert_close(loss(slice(None), 30), alone)


def test_what_is_too_short_for_the_post_encoder_has_no_frame() -> None:
    model, of = surrounded(adaptor=3).eval(), batch(2, frames=20)
    subsampled = model.run_subsampling(of)
    encoded, after = after_encoder(
        model, model.run_blocks(subsampled, of, model.encoder.sizes["full"]), subsampled, of.context
    )
    assert after.lengths.tolist() == [0, 0] and encoded.size(1) == 1
    assert torch.isfinite(run(model, of)[0])


@pytest.mark.parametrize("adaptor", [0, 2])
def test_they_are_counted(adaptor: int) -> None:
    """Parameters as the model has them, FLOPs as a counter's on ten seconds."""
    model = surrounded(1.0, adaptor).eval()
    model.ctc.ctc_lo = torch.nn.Linear(16, len(TOKENS))
    table = model.component_table()
    assert table.cost(table.full()).params == sum(p.numel() for p in model.parameters())
    of = Batch(torch.randn(1, 1000, 20), torch.tensor([1000]), torch.tensor([[3]]), torch.tensor([1]))
    plain = tiny_model().eval()
    with torch.no_grad():
        counters = []
        for one in (model, plain):
            with flop_counter() as counter:
                subsampled = one.run_subsampling(of)
                encoded, _ = after_encoder(
                    one, one.run_blocks(subsampled, of, one.encoder.sizes["full"]), subsampled, of.context
                )
                one.ctc.ctc_lo(encoded)
            counters.append(counter.get_total_flops())
    difference = 10 * (table.rest.flops - plain.component_table().rest.flops)
    assert difference == pytest.approx(counters[0] - counters[1], rel=0.01)
    state = model.outer_state(model.encoder.sizes["small"])
    assert {"preencoder.linear_out.weight", "postencoder.embed.0.weight"} <= state.keys()


def test_calibration_sees_what_the_encoder_sees() -> None:
    model = surrounded().eval()
    of = batch(1)
    (subsampled,) = calibration_fronts(model, model.encoder, [of.speech[0]])
    of.speech_lengths[0] = len(of.speech[0])
    torch.testing.assert_close(subsampled.hidden, model.run_subsampling(of).hidden)


# ---- distillation of the attention decoder -------------------------------------------------------------------------------


def outputs(model: TodmModel, of: Batch) -> tuple[Any, Any]:
    subsampled = model.run_subsampling(of)
    teacher, student = (model.run_subnet(subsampled, of, model.encoder.sizes[n]).posteriors for n in ("full", "small"))
    return teacher.detach(), student


def test_the_decoder_teaches_token_by_token_behind_the_right_ones() -> None:
    model, of = tiny_model(0.0), batch(3)
    teacher, student = outputs(model, of)
    assert student.attention.shape == (3, 5, len(TOKENS))  # four tokens and the end
    assert student.tokens.tolist() == [5, 5, 4]
    expected = [KL(teacher.attention[n, :size], student.attention[n, :size]).sum() for n, size in enumerate((5, 5, 4))]
    loss = model.distillation(teacher, student, of, KL)
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    assert float(model.distillation(teacher, teacher, of, KL)) == pytest.approx(0, abs=1e-6)


def test_padding_of_text_teaches_nothing() -> None:
    model, of = tiny_model(0.0), batch(3)
    padded = replace(of, text=torch.nn.functional.pad(of.text, (0, 3), value=-1))
    torch.testing.assert_close(*(model.distillation(*outputs(model, b), b, KL) for b in (of, padded)))


def test_a_loss_per_token_has_a_distillation_per_token() -> None:
    of = batch(3)
    sums, means = (tiny_model(0.0, {"length_normalized_loss": per_token}) for per_token in (False, True))
    means.load_state_dict(sums.state_dict())
    per_utterance, per_token = (model.distillation(*outputs(model, of), of, KL) for model in (sums, means))
    torch.testing.assert_close(per_token, per_utterance * 3 / 14)


def test_an_utterance_without_a_frame_teaches_nothing() -> None:
    of, model = batch(3), tiny_model(0.0)
    of.speech_lengths[1] = 3
    two = Batch(of.speech[[0, 2]], of.speech_lengths[[0, 2]], of.text[[0, 2]], of.text_lengths[[0, 2]])
    three = model.distillation(*outputs(model, of), of, KL)
    torch.testing.assert_close(3 * three, 2 * model.distillation(*outputs(model, two), two, KL))
    of.speech_lengths[:] = 3
    nothing = model.distillation(*outputs(model, of), of, KL)
    nothing.backward()
    assert float(nothing) == 0


def test_of_ctc_and_attention_only_ctc_teaches_unless_both_shall() -> None:
    of = batch(3)
    one, both = (tiny_model(0.3, {"distil_attention": option}) for option in (None, True))
    both.load_state_dict(one.state_dict())
    teacher, student = outputs(one, of)
    assert student.attention is None
    ctc = ctc_frame_distillation(teacher.ctc, student.ctc, student.lengths, KL)
    torch.testing.assert_close(one.distillation(teacher, student, of, KL), ctc)
    teacher, student = outputs(both, of)
    attention = replace(teacher, ctc=None), replace(student, ctc=None)
    expected = 0.3 * ctc + both.distillation(*attention, of, KL)
    torch.testing.assert_close(both.distillation(teacher, student, of, KL), expected)


@pytest.mark.parametrize("ctc_weight", [1.0, 0.0])
def test_the_option_is_for_attention_decoders(ctc_weight: float) -> None:
    if ctc_weight == 0.0:
        assert tiny_model(0.0, {"distil_attention": False}).distils_attention is True  # nothing else could teach
        with pytest.raises(UserError, match="output_layers: 'per_size' needs a CTC output or a transducer"):
            tiny_model(0.0, {"output_layers": "per_size"})
        return
    for model in (tiny_model, transducer):
        with pytest.raises(UserError, match="distil_attention: is for models with an attention decoder"):
            model(model={"distil_attention": True})


def test_a_language_token_stands_before_the_text() -> None:
    model, of = trained_by(ctc_weight=0.3, kd_weight=0).eval(), batch()
    plain = run(model, of)[1]
    model.lang_token_id = torch.tensor([[3]])
    stock = ESPnetASRModel.forward(model, of.speech, of.speech_lengths, of.text, of.text_lengths.clone())[1]
    stats = run(model, of)[1]
    torch.testing.assert_close(stats["loss_att"], stock["loss_att"].squeeze())
    assert stats["loss_att"] != plain["loss_att"] and stats["loss_ctc"] == plain["loss_ctc"]


def test_label_smoothing_is_espnets() -> None:
    of, losses = batch(), []
    for smoothing in (0.0, 0.1):
        model = tiny_model(0.0, {"lsm_weight": smoothing}).eval()
        stock = ESPnetASRModel.forward(model, of.speech, of.speech_lengths, of.text, of.text_lengths)[0]
        losses.append(model.run_subnet(model.run_subsampling(of), of, model.encoder.sizes["full"]).loss)
        torch.testing.assert_close(losses[-1], stock.squeeze())
    assert losses[0] != losses[1]


def test_ctc_drops_out_as_espnets() -> None:
    assert CTC(len(TOKENS), 16).dropout_rate == 0.0  # its default, which configurations of recipes keep


def test_texts_with_ends_and_their_accuracy_are_espnets() -> None:
    text = torch.tensor([[3, 4, 5], [6, -1, -1], [-1, -1, -1]])
    ours, theirs = with_ends(text, 1, 2, -1), add_sos_eos(text, 1, 2, -1)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
    logits = torch.nn.functional.one_hot(torch.tensor([[3, 4, 0, 2], [6, 2, 2, 2], [0, 2, 2, 2]]), 7).float()
    share = th_accuracy(logits.reshape(-1, 7), theirs[1], ignore_label=-1)
    assert float(accuracy(logits, ours[1], -1)) == pytest.approx(share) == pytest.approx(5 / 7)
