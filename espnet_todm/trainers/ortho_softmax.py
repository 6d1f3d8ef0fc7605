"""``subnet_trainer: ortho_softmax``: components of every size learned by orthogonal softmaxes (arXiv 2501.18895)."""

from __future__ import annotations

from espnet_todm.selection.ortho_softmax import OrthoSoftmax
from espnet_todm.trainers.two_stage import TwoStageTrainer


class OrthoSoftmaxTrainer(TwoStageTrainer):
    """Options of :class:`TwoStageTrainer` and of :class:`OrthoSoftmax`."""

    selection_class = OrthoSoftmax
