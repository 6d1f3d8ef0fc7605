"""Training steps and validations of tiny models, to run on the mock device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Callable, Optional

import torch
from espnet2.asr.decoder.transducer_decoder import TransducerDecoder
from espnet2.asr.specaug.specaug import SpecAug
from espnet2.asr_transducer.joint_network import JointNetwork
from torch import Tensor

from espnet_todm.decoders.stateless import StatelessDecoder
from espnet_todm.models.batch import Batch
from espnet_todm.models.subnet_trainer import SubnetTrainer, TrainingSetup
from espnet_todm.models.todm import TodmModel
from espnet_todm.optim.scaled_adam import ScaledAdam
from espnet_todm.trainers.aux_loss import AuxLossTrainer
from espnet_todm.trainers.kd import KDTrainer
from espnet_todm.trainers.single import SingleTrainer
from espnet_todm.trainers.two_stage import TwoStageTrainer
from tests.mock_device import DEVICE, Counts, MockDevice, on_cpu, on_device
from tests.tiny_model import TOKENS, batch, tiny_model

UTTERANCES = 8
OPTIMIZER_STEPS = 9  # of which the last 8 are counted
STEPS = 3  # the last one is counted: what a first step keeps for later ones is not counted
FIRST_BLOCKS = {"sizes": {"middle": {"depth": 0.67, "drop": "last"}, "small": {"depth": 0.34, "drop": "last"}}}
LEARNED = {"sizes": {"middle": 0.7, "small": 0.45}}


@dataclass(frozen=True)
class Case:
    """A model and its trainer. Options are those of the trainer (``conf``), the model and the encoder."""

    trainer: type[SubnetTrainer] = KDTrainer
    conf: Mapping[str, Any] = field(default_factory=dict)
    ctc_weight: float = 1.0
    model: Mapping[str, Any] = field(default_factory=dict)
    encoder: Mapping[str, Any] = field(default_factory=dict)
    predictor: Optional[str] = None  # of a transducer: "lstm" or "stateless"
    specaug: bool = False
    training: bool = True  # false: its validation

    def build(self) -> TodmModel:
        """The model with its trainer, the same in each call."""
        torch.manual_seed(0)
        parts: dict[str, Any] = dict(self.model)
        if self.predictor == "lstm":
            parts["decoder"] = TransducerDecoder(len(TOKENS), hidden_size=12)
            parts["joint_network"] = JointNetwork(len(TOKENS), 16, 12, joint_space_size=10)
        elif self.predictor == "stateless":
            parts["decoder"] = StatelessDecoder(len(TOKENS), hidden_size=12)
        if self.specaug:
            parts["specaug"] = SpecAug(
                num_freq_mask=1, num_time_mask=1, freq_mask_width_range=(0, 5), time_mask_width_range=(0, 5)
            )
        if self.predictor:
            parts["ctc_weight"] = self.ctc_weight
        model = tiny_model(1.0 if self.predictor else self.ctc_weight, parts, **self.encoder)
        model.subnet_trainer = self.trainer(model, **self.conf)
        return model.train(self.training)


# Not the backend that a GPU would choose: its kernel has other rounding errors.
RNNT: dict[str, Any] = {"predictor": "stateless", "ctc_weight": 0.0, "model": {"transducer_conf": {"backend": "torch"}}}


def transducer() -> dict[str, Any]:
    return dict(RNNT)


def pruned(**options: Any) -> dict[str, Any]:
    return {**RNNT, "model": {"transducer_conf": {"prune_range": 3, "backend": "torch", **options}}}


CASES: dict[str, Case] = {
    "kd": Case(),
    "kd, chunk masks": Case(encoder={"causal": True, "chunk": {"frames": [2, 4], "left": [2, 8], "full_share": 0.0}}),
    "kd, batch norm, own norms": Case(encoder={"conv_norm": "batch_norm", "own_affine": True, "own_branch_scale": 0.5}),
    "kd, CTC/attention": Case(ctc_weight=0.3),
    "kd, CTC/attention, distilled attention": Case(ctc_weight=0.3, model={"distil_attention": True}),
    "kd, kd_start": Case(conf={"kd_start": {}}),
    "kd, search space": Case(conf={"search_space": {"depth": [0.5, 1.0], "ffn": [0.5, 1.0]}}),
    "kd, split_batch": Case(conf={"split_batch": True, "kd_weight": 0.0}),
    "kd, views of the input": Case(conf={"views": {"where": "input"}}, specaug=True),
    "kd, subsampled views": Case(conf={"views": {"where": "subsampled", "both_ways": False}}),
    "kd, averaged teacher": Case(conf={"teacher": "ema"}),
    "kd, agreement": Case(conf={"agreement_every": 1}),
    "two_stage, first stage": Case(TwoStageTrainer, {"stage1_steps": 1000}, encoder=LEARNED),
    "two_stage, second stage": Case(
        TwoStageTrainer, {"stage1_steps": 1, "layer_drop": 0.5}, encoder=LEARNED
    ),
    "two_stage, top_k": Case(
        TwoStageTrainer, {"stage1_steps": 1000, "selection": "top_k"}, encoder=LEARNED
    ),
    "single": Case(SingleTrainer),
    "aux_loss": Case(AuxLossTrainer, encoder=FIRST_BLOCKS),
    "kd, RNN-T": Case(**RNNT),
    "kd, RNN-T, LSTM predictor": Case(**{**RNNT, "predictor": "lstm"}),
    "kd, RNN-T with CTC": Case(**{**RNNT, "ctc_weight": 0.3}),
    "kd, pruned RNN-T": Case(**pruned()),
    "kd, pruned RNN-T, own ranges, am_scale": Case(**pruned(reuse_ranges=False, am_scale=0.1)),
    "two_stage, pruned RNN-T": Case(
        TwoStageTrainer, {"stage1_steps": 1000, "kd_weight": 0.5}, encoder=LEARNED, **pruned()
    ),
    "single, RNN-T": Case(SingleTrainer, **RNNT),
    "validation": Case(training=False),
    "validation, CTC/attention": Case(training=False, ctc_weight=0.3),
    "validation, RNN-T": Case(training=False, **RNNT),
}  # fmt: skip


Build = Callable[[Iterable[Tensor]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Build] = {
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3, foreach=True),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, foreach=True),
    "ScaledAdam": lambda parameters: ScaledAdam(parameters, lr=1e-2),
    "ScaledAdam, clipping_scale": lambda parameters: ScaledAdam(
        parameters, lr=1e-2, clipping_scale=2.0, clipping_update_period=4
    ),
    "ScaledAdam, skip_zero_grad": lambda parameters: ScaledAdam(parameters, lr=1e-2, skip_zero_grad=True),
}


@dataclass
class Outcome:
    """Gradients and statistics (with the loss) of the last step, and the parameters after it, on the CPU."""

    gradients: dict[str, Optional[Tensor]]
    stats: dict[str, Any]
    parameters: dict[str, Tensor]


def cpu_outcome(case: Case, optimizer: Optional[Build] = None, utterances: int = UTTERANCES) -> Outcome:
    return _steps(case.build(), batch(utterances), optimizer)


def mock_outcome(case: Case, optimizer: Optional[Build] = None, utterances: int = UTTERANCES) -> tuple[Outcome, Counts]:
    """The same on the mock device, and what happened there: in the last step, or in all steps of the optimizer."""
    with MockDevice() as device:
        outcome = _steps(case.build().to(DEVICE), on_device(batch(utterances)), optimizer, device.counts)
    return outcome, device.counts


def trained_steps(model: TodmModel, of: Batch) -> Iterator[dict[str, Any]]:
    """Run steps 0, 1, ... of a training without an optimizer, or of a validation. Yields loss and statistics."""
    for step in count():
        torch.manual_seed(step)
        model.zero_grad(set_to_none=True)
        if model.training and model.subnet_trainer is not None:
            model.subnet_trainer.prepare(model, step, TrainingSetup(planned_steps=2000))
        loss, stats, _ = model(of.speech, of.speech_lengths, of.text, of.text_lengths, step=step)
        if model.training:
            loss.sum().backward()
        yield {**stats, "loss": loss.detach().sum()}


def _steps(model: TodmModel, of: Batch, build: Optional[Build], counts: Optional[Counts] = None) -> Outcome:
    counts = counts or Counts()
    optimizer = None if build is None else build(list(model.parameters()))
    steps, of_optimizer = trained_steps(model, of), Counts()
    for step in range(STEPS if optimizer is None else OPTIMIZER_STEPS):
        counts.clear()
        stats = next(steps)
        if optimizer is not None:
            counts.clear()
            optimizer.step()
            if step:  # the first one makes the state
                of_optimizer.update(counts)
    if optimizer is not None:
        counts.clear()
        counts.update(of_optimizer)
    found = {name: None if p.grad is None else on_cpu(p.grad).clone() for name, p in model.named_parameters()}
    after = {name: on_cpu(p.detach()).clone() for name, p in model.named_parameters()}
    return Outcome(found, {name: on_cpu(value) for name, value in stats.items()}, after)
