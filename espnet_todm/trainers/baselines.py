"""What OrthoSoftmax is compared with, on the same two stages: each differs in who picks the sets."""

from __future__ import annotations

from typing import Any

from espnet_todm.selection.random_nested import RandomNested
from espnet_todm.selection.top_k import TopK
from espnet_todm.selection.uniform import Uniform
from espnet_todm.selection.zero_out import ZeroOut
from espnet_todm.trainers.two_stage import TwoStageTrainer


class _PlainWeight(TwoStageTrainer):
    """Subnets count 0.3, as in arXiv 2407.18930, not by a focal weight."""

    def __init__(self, model: Any, seed: int = 0, subnet_weight: float = 0.3, **options: Any) -> None:
        super().__init__(model, seed, subnet_weight=subnet_weight, **options)


class _NothingToLearn(TwoStageTrainer):
    """Slices from the first step on."""

    def __init__(self, model: Any, seed: int = 0, stage1_steps: int = 0, **options: Any) -> None:
        super().__init__(model, seed, stage1_steps=stage1_steps, **options)


class TopKTrainer(_PlainWeight):
    """``subnet_trainer: top_k`` (arXiv 2407.18930)."""

    selection_class = TopK


class ZeroOutTrainer(_PlainWeight):
    """``subnet_trainer: zero_out`` (arXiv 2407.18930)."""

    selection_class = ZeroOut


class RandomNestedTrainer(_NothingToLearn):
    """``subnet_trainer: random_nested``: a random order."""

    selection_class = RandomNested


class UniformTrainer(_NothingToLearn):
    """``subnet_trainer: uniform``: depth and widths scaled alike."""

    selection_class = Uniform
