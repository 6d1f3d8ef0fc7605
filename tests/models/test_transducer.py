"""Transducer supernets: losses, distillation, pruning, what they extract to, and ESPnet's search."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Optional

import pytest
import torch
from espnet2.asr.decoder.transducer_decoder import TransducerDecoder
from espnet2.asr_transducer.joint_network import JointNetwork

from espnet_todm.decode.options import SearchOptions
from espnet_todm.decode.searches import make_search
from espnet_todm.decoders.stateless import StatelessDecoder
from espnet_todm.errors import UserError
from espnet_todm.losses.alpha_divergence import Divergence
from espnet_todm.models.subnet_trainer import SubnetTrainer
from espnet_todm.models.todm import TodmModel
from espnet_todm.models.transducer import TransducerOptions, error_rate
from espnet_todm.trainers.kd import KDTrainer
from espnet_todm.trainers.two_stage import TwoStageTrainer
from espnet_todm.util.compat import autocasts_on_cpu
from tests.tiny_model import TOKENS, batch, gradients, run, tiny_model

torchaudio = pytest.importorskip("torchaudio")
NAMES = ("full", "middle", "small")
LSTM, STATELESS = "lstm", "stateless"


def transducer(
    predictor: str = STATELESS,
    ctc_weight: float = 0.0,
    trainer: Optional[type[SubnetTrainer]] = KDTrainer,
    conf: Optional[dict[str, Any]] = None,
    model: Optional[dict[str, Any]] = None,
    **encoder: Any,
) -> TodmModel:
    """A tiny transducer in training mode; ``conf`` is the trainer's."""
    torch.manual_seed(0)
    parts: dict[str, Any] = {"ctc_weight": ctc_weight, **(model or {})}
    if predictor == LSTM:
        parts["decoder"] = TransducerDecoder(len(TOKENS), hidden_size=12)
        parts["joint_network"] = JointNetwork(len(TOKENS), 16, 12, joint_space_size=10)
    else:
        parts["decoder"] = StatelessDecoder(len(TOKENS), hidden_size=12)
    made = tiny_model(model=parts, **encoder).train()
    if predictor == STATELESS:
        made.join(made.make_joint({"joint_space_size": 10}))
    if trainer is not None:
        made.subnet_trainer = trainer(made, **(conf or {}))
    return made


@pytest.mark.parametrize("predictor", [LSTM, STATELESS])
def test_loss_is_torchaudios(predictor: str) -> None:
    model, of = transducer(predictor).eval(), batch(3)
    subsampled = model.run_subsampling(of)
    ours = model.run_subnet(subsampled, of, model.encoder.sizes["small"]).loss
    encoded = model.run_blocks(subsampled, of, model.encoder.sizes["small"])
    labels = of.text.clamp(min=0)
    predicted = model.decoder(torch.nn.functional.pad(labels, (1, 0)))
    logits = model.joint_network(encoded.unsqueeze(2), predicted.unsqueeze(1))
    sizes = subsampled.lengths.int(), of.text_lengths.int()
    theirs = torchaudio.functional.rnnt_loss(logits, labels.int(), *sizes, blank=0, reduction="mean")
    torch.testing.assert_close(ours, theirs)


def test_ctc_beside_it_adds_its_weight() -> None:
    model, of = transducer(ctc_weight=0.3).eval(), batch()
    subsampled = model.run_subsampling(of)
    output = model.run_subnet(subsampled, of, model.encoder.sizes["full"])
    parts = output.stats["loss_transducer"] + 0.3 * output.stats["loss_ctc"]
    torch.testing.assert_close(output.loss.detach(), parts)


@pytest.mark.parametrize("prune_range", [0, 3])
@pytest.mark.parametrize("reuse_ranges", [True, False])
@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_a_step_gives_every_parameter_one_finite_gradient(
    prune_range: int, reuse_ranges: bool, ctc_weight: float
) -> None:
    options = {"prune_range": prune_range, "reuse_ranges": reuse_ranges}
    model, of = transducer(ctc_weight=ctc_weight, model={"transducer_conf": options}), batch(3)
    loss, stats = run(model, of)
    loss.backward()
    found = gradients(model)
    assert all(value is not None and torch.isfinite(value).all() for value in found.values()), found.keys()
    # With few labels the window holds all of them, so the simple joiner is all that pruning can lack.
    assert {"loss_full", "loss_small", "kd_small"} <= stats.keys()
    assert all(torch.isfinite(value) for value in stats.values())


@pytest.mark.k2
@pytest.mark.parametrize("prune_range", [0, 2])
def test_k2_trains_as_ours_does(prune_range: int) -> None:
    """Sandwich step with distillation on the pruned lattice. Skipped where k2 is not installed."""
    pytest.importorskip("k2")
    found = []
    for backend in ("torch", "k2"):
        conf = {"backend": backend, "prune_range": prune_range}
        model = transducer(model={"transducer_conf": conf})
        loss, _ = run(model, batch(3, frames=90, tokens=8))
        loss.backward()
        found.append((loss.detach(), gradients(model)))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_ranges_of_the_teacher_are_reused_or_the_students_own() -> None:
    for reuse in (True, False):
        options = {"prune_range": 2, "reuse_ranges": reuse}
        model, of = transducer(trainer=None, model={"transducer_conf": options}), batch(3, frames=90, tokens=8)
        subsampled = model.run_subsampling(of)
        teacher = model.run_subnet(subsampled, of, model.encoder.sizes["full"]).posteriors.detach()
        student = model.run_subnet(subsampled, of, model.encoder.sizes["small"], teacher=teacher).posteriors
        assert teacher.lattice is not None and student.lattice is not None
        assert (student.lattice.ranges is teacher.lattice.ranges) is reuse
        itself = model.distillation(teacher, teacher, of, Divergence())
        other = model.distillation(teacher, student, of, Divergence())
        assert float(itself) == pytest.approx(0, abs=1e-5) and float(other.detach()) > 0


def test_a_wide_window_is_the_full_lattice() -> None:
    of = batch(3)
    full, pruned = (
        transducer(trainer=None, model={"transducer_conf": {"prune_range": width, "simple_weight": 0.0}}).eval()
        for width in (0, 10)
    )
    pruned.load_state_dict(full.state_dict(), strict=False)
    losses = [m.run_subnet(m.run_subsampling(of), of, m.encoder.sizes["full"]).loss for m in (full, pruned)]
    torch.testing.assert_close(*losses)


def test_warmup_moves_weight_from_the_simple_to_the_pruned_loss() -> None:
    options = TransducerOptions(prune_range=5, warmup_steps=100)
    assert options.weights(0) == (1.0, 0.1) and options.weights(100) == (0.5, 1.0)
    assert options.weights(50) == pytest.approx((0.75, 0.55))


def test_validation_reports_every_size_and_is_greedy_search() -> None:
    model, of = transducer(ctc_weight=0.3).eval(), batch(3)
    with torch.no_grad():
        _, stats = run(model, of)
    keys = ("loss", "loss_transducer", "loss_ctc", "cer_transducer", "wer_transducer", "cer_ctc")
    assert {f"{key}_{name}" for key in keys for name in NAMES} <= stats.keys()
    subsampled = model.run_subsampling(of)
    encoded = model.run_blocks(subsampled, of, model.encoder.sizes["small"])
    found = make_search(model, SearchOptions())(encoded, subsampled.lengths)
    assert float(stats["cer_transducer_small"]) == pytest.approx(error_rate(found, of.text, of.text_lengths))


def test_error_rate_counts_edits_over_labels() -> None:
    text, lengths = torch.tensor([[3, 4, 5], [3, -1, -1]]), torch.tensor([3, 1])
    assert error_rate([[3, 5], [3]], text, lengths) == 0.25
    assert error_rate([[], []], text, torch.tensor([0, 0])) is None


@pytest.mark.parametrize("kind", ["greedy", "default", "maes", "tsd", "alsd", "nsc"])
@pytest.mark.parametrize("predictor", [LSTM, STATELESS])
def test_espnets_searches_run_on_slices(kind: str, predictor: str) -> None:
    model = transducer(predictor, trainer=None, subnet="small").eval()
    with torch.no_grad():
        encoded, lengths = model.encode(batch().speech, batch().speech_lengths)
        found = make_search(model, SearchOptions(kind, beam_size=3))(encoded, lengths)
    assert len(found) == 2 and all(0 < label < len(TOKENS) for labels in found for label in labels)


def test_padding_and_other_utterances_do_not_matter() -> None:
    of = batch(3)
    model = transducer(trainer=None, model={"transducer_conf": {"prune_range": 2}}).eval()

    def loss(speech: Any, part: slice) -> torch.Tensor:
        some = replace(
            of,
            speech=speech[part],
            speech_lengths=of.speech_lengths[part],
            text=of.text[part],
            text_lengths=of.text_lengths[part],
        )
        subsampled = model.run_subsampling(some)
        return model.run_subnet(subsampled, some, model.encoder.sizes["small"]).loss

    noisy = of.speech.clone()
    noisy[-1, of.speech_lengths[-1] :] = 7.0
    alone = torch.stack([loss(of.speech, slice(n, n + 1)) for n in range(3)]).mean()
    torch.testing.assert_close(loss(noisy, slice(None)), alone)


@pytest.mark.skipif(not autocasts_on_cpu(torch.bfloat16), reason="this torch cannot autocast norms on a CPU")
def test_autocast_trains_and_validates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("espnet_todm.models.autocast.cpu_has", lambda dtype: True)
    for predictor, prune_range in ((LSTM, 0), (STATELESS, 2)):
        options = {"autocast": "bfloat16", "transducer_conf": {"prune_range": prune_range}}
        model = transducer(predictor, ctc_weight=0.3, model=options)
        loss, _ = run(model, batch(3))
        loss.backward()
        assert torch.isfinite(loss)
        with torch.no_grad():
            assert "cer_transducer_small" in run(model.eval(), batch(3))[1]


def test_odd_utterances_give_finite_losses_and_gradients() -> None:
    for prune_range in (0, 2):
        model, of = transducer(model={"transducer_conf": {"prune_range": prune_range}}), batch(4)
        of.text[0], of.text_lengths[0] = -1, 0  # no words
        of.speech_lengths[1] = 3  # not one frame after subsampling
        of.speech_lengths[2] = 9  # one frame, four labels
        loss, _ = run(model, of)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(g).all() for g in gradients(model).values() if g is not None)
        with torch.no_grad():
            loss, _ = run(model.eval(), of)
        assert torch.isfinite(loss)


def test_learned_selections_train_transducers() -> None:
    sizes = {"middle": 0.8, "small": 0.7}
    model = transducer(trainer=TwoStageTrainer, conf={"stage1_steps": 1, "kd_weight": 0.5}, sizes=sizes)
    for step in range(2):
        loss, _ = run(model, batch(), step)
        assert torch.isfinite(loss)


def test_each_size_may_have_a_joiner_of_its_own() -> None:
    model = transducer(model={"output_layers": "per_size"})
    small = model.encoder.sizes["small"]
    with torch.no_grad():
        model.size_joints["small"].lin_out.bias.fill_(3.0)
    assert model.transducer("small").joint is model.size_joints["small"]
    assert float(model.outer_state(small)["joint_network.lin_out.bias"][0]) == 3.0
    assert not any(name.startswith("size_") for name in model.outer_state(small))


def test_the_simple_joiner_stays_behind() -> None:
    model = transducer(model={"transducer_conf": {"prune_range": 3}})
    state = model.outer_state(model.encoder.sizes["full"])
    assert not any(name.startswith("simple_joint") for name in state) and "joint_network.lin_out.weight" in state
    table = model.component_table()
    simple = sum(p.numel() for p in model.simple_joint.parameters())
    assert table.cost(table.full()).params == sum(p.numel() for p in model.parameters()) - simple


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prune_range": 1}, "prune_range: 1"),
        ({"backend": "cuda"}, "backend: 'cuda' is unknown"),
        ({"am_scale": 0.8, "lm_scale": 0.8}, "am_scale"),
        ({"prune": 5}, "unknown key 'prune'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        transducer(model={"transducer_conf": options})


def test_what_only_transducers_have_is_refused_elsewhere() -> None:
    with pytest.raises(UserError, match="transducer_conf"):
        tiny_model(model={"transducer_conf": {"prune_range": 3}})
    with pytest.raises(UserError, match=r"joint_net_conf.*joint_size"):
        transducer().make_joint({"joint_size": 3})
    with pytest.raises(UserError, match="maes is for transducers"):
        make_search(tiny_model(), SearchOptions("maes"))
    with pytest.raises(UserError, match="prefix is for CTC, but this model is a transducer"):
        make_search(transducer(), SearchOptions("prefix"))
