"""The ESPnet model around a supernet: training, validation, stock inference, edge cases of real batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.asr.specaug.specaug import SpecAug
from espnet2.layers.utterance_mvn import UtteranceMVN

from espnet_todm.errors import UserError
from espnet_todm.models.batch import Batch
from espnet_todm.models.todm import TodmModel
from tests.conftest import conformer
from tests.tiny_model import PARTS, TOKENS, batch, gradients, run, tiny_model, trained_by

NAMES = ("full", "middle", "small")


@pytest.mark.parametrize("ctc_weight", [1.0, 0.3, 0.0])
def test_full_subnet_is_what_espnets_own_model_computes(ctc_weight: float) -> None:
    model, of = tiny_model(ctc_weight).eval(), batch()
    stock, _, _ = ESPnetASRModel.forward(model, of.speech, of.speech_lengths, of.text, of.text_lengths)
    ours = model.run_subnet(model.run_subsampling(of), of, model.encoder.sizes["full"]).loss
    torch.testing.assert_close(ours, stock.squeeze())


@pytest.mark.parametrize("ctc_weight", [1.0, 0.3, 0.0])
def test_validation_reports_every_size(ctc_weight: float) -> None:
    model, of = trained_by(ctc_weight=ctc_weight, kd_weight=0).eval(), batch()
    loss, stats = run(model, of)
    keys = {"loss"} | {f"loss_{name}" for name in NAMES}
    keys |= {f"cer_ctc_{name}" for name in NAMES} if ctc_weight else set()
    keys |= {f"{key}_{name}" for name in NAMES for key in ("acc", "cer", "wer")} if ctc_weight < 1 else set()
    assert keys <= stats.keys()
    torch.testing.assert_close(loss, torch.stack([stats[f"loss_{name}"] for name in NAMES]).mean())
    assert len({float(stats[f"loss_{name}"]) for name in NAMES}) == 3


def test_validation_of_a_size_is_that_of_the_extracted_model() -> None:
    model, of = trained_by().eval(), batch(3)
    _, stats = run(model, of)
    model.encoder = model.encoder.extract(model.encoder.sizes["small"])
    loss, cer = (
        ESPnetASRModel.forward(model, of.speech, of.speech_lengths, of.text, of.text_lengths)[i] for i in (0, 1)
    )
    torch.testing.assert_close(stats["loss_small"], loss.squeeze())
    torch.testing.assert_close(stats["cer_ctc_small"], cer["cer_ctc"].squeeze())


def test_a_model_without_trainer_validates_the_subnet_it_runs() -> None:
    _, stats = run(tiny_model(subnet="small").eval(), batch())
    assert {"loss_small", "cer_ctc_small"} <= stats.keys() and "loss_full" not in stats
    with pytest.raises(UserError, match="subnet_trainer: kd"):
        run(tiny_model().train(), batch())


def test_weight_is_the_number_of_utterances() -> None:
    of = batch(3)
    weight = trained_by()(of.speech, of.speech_lengths, of.text, of.text_lengths)[2]
    assert weight.item() == 3


def empty_transcript(of: Batch) -> Batch:
    of.text[-1], of.text_lengths[-1] = -1, 0
    return of


def all_transcripts_empty(of: Batch) -> Batch:
    return replace(of, text=torch.full_like(of.text, -1), text_lengths=torch.zeros_like(of.text_lengths))


def too_short_for_its_text(of: Batch) -> Batch:
    of.speech_lengths[-1] = 12  # 2 frames after subsampling, but 3 tokens
    return of


def shorter_than_one_frame(of: Batch) -> Batch:
    of.speech_lengths[-1] = 3
    return of


@pytest.mark.parametrize("ctc_weight", [1.0, 0.3])
@pytest.mark.parametrize(
    "change", [empty_transcript, all_transcripts_empty, too_short_for_its_text, shorter_than_one_frame]
)
def test_odd_utterances_give_finite_losses_and_gradients(change: Any, ctc_weight: float) -> None:
    model, of = trained_by(ctc_weight=ctc_weight), change(batch(3))
    loss, stats = run(model, of)
    loss.backward()
    assert all(torch.isfinite(value) for value in stats.values()), stats
    assert all(torch.isfinite(g).all() for g in gradients(model).values() if g is not None)
    _, stats = run(model.eval(), of)
    # An error rate over no reference at all does not exist; losses do.
    assert all(torch.isfinite(value) for key, value in stats.items() if key.startswith("loss")), stats


def test_padding_of_text_does_not_matter() -> None:
    of = batch()
    padded = replace(of, text=torch.nn.functional.pad(of.text, (0, 3), value=-1))
    losses = [run(trained_by(ctc_weight=0.3), b)[0].detach() for b in (of, padded)]
    torch.testing.assert_close(*losses)


def test_features_are_augmented_once_and_in_training_only() -> None:
    calls = []

    class Counting(SpecAug):
        def forward(self, *arguments: Any) -> Any:
            calls.append(self.training)
            return super().forward(*arguments)

    model = tiny_model(
        model={"specaug": Counting(apply_time_warp=False, time_mask_width_range=5), "normalize": UtteranceMVN()}
    ).train()
    model.subnet_trainer = trained_by().subnet_trainer
    run(model, batch())
    assert calls == [True]
    run(model.eval(), batch())
    assert calls == [True]


def test_component_table_counts_the_whole_model() -> None:
    model = tiny_model(ctc_weight=0.3)
    table = model.component_table()
    assert table.cost(table.full()).params == sum(p.numel() for p in model.parameters())
    small = model.encoder.sizes["small"]
    others = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("encoder."))
    extracted = sum(p.numel() for p in model.encoder.extract(small).parameters())
    assert table.cost(small).params == extracted + others


def test_stock_inference_encodes_the_chosen_subnet() -> None:
    model, of = tiny_model(subnet="small").eval(), batch()
    encoded, lengths = model.encode(of.speech, of.speech_lengths)
    subsampled = model.run_subsampling(of)
    torch.testing.assert_close(encoded, model.encoder.blocks(subsampled, model.encoder.sizes["small"]))
    assert torch.equal(lengths, subsampled.lengths)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"aux_ctc": {"1": "lid"}}, ["aux_ctc", "lid", "of the text"]),
        (
            {"token_list": ["<blank>", "<space>", "▁a", *TOKENS[3:]]},
            ["token_list", "token 1 is <space>", "token 2 is '▁a'"],
        ),
        (
            {"token_list": ["\ufeff<blank>", *TOKENS[1:]]},
            ["token_list", "token 0 is '\\ufeff<blank>'", "byte order mark"],
        ),
        ({"autocast": "bf16"}, ["autocast", "bf16", "bfloat16"]),
        ({"encoder": torch.nn.Linear(1, 1)}, ["encoder", "todm_conformer"]),
        ({"distil_attention": "yes"}, ["distil_attention", "'yes'", "true or false"]),
        ({"error_rates_every": 0}, ["error_rates_every", "0", ">= 1"]),
        ({"autocast": "bf16", "output_layers": "own", "widht": 1}, ["autocast", "output_layers", "'own'", "'widht'"]),
    ],
)
def test_parts_that_a_supernet_cannot_have_are_refused(options: dict, words: list[str]) -> None:
    parts = {**PARTS, "encoder": conformer(), "vocab_size": len(TOKENS), "token_list": TOKENS}
    with pytest.raises(UserError) as error:
        TodmModel(**{**parts, **options})
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_other_ctc_types_are_refused() -> None:
    from espnet2.asr.ctc import CTC

    model = tiny_model()
    ctc = CTC(len(TOKENS), 16)
    ctc.ctc_type = "gtnctc"
    parts = {**PARTS, "encoder": model.encoder, "ctc": ctc, "vocab_size": len(TOKENS), "token_list": TOKENS}
    with pytest.raises(UserError, match="ctc_type: builtin"):
        TodmModel(**parts, ctc_weight=1.0)


def test_autocast_that_the_cpu_would_emulate_is_left_out_and_said(monkeypatch, caplog) -> None:
    monkeypatch.setattr("espnet_todm.models.autocast.cpu_has", lambda dtype: False)
    model = tiny_model(model={"autocast": "bfloat16"}).eval()
    assert "float32" in caplog.text
    assert float(run(model, batch())[0]) == float(run(tiny_model().eval(), batch())[0])
