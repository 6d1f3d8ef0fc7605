"""A transducer's three graphs: encoder, decoder (the predictor) and joiner.

Encoder and decoder include the projections to the joiner's dimension J, so these run only once per frame and once per
label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from espnet_todm.decoders.stateless import StatelessDecoder
from espnet_todm.deploy.onnx.graph import EncoderGraph, without


class ProjectedEncoder(nn.Module):
    """Encoder and its projection to the joiner's dimension."""

    def __init__(self, encoder: EncoderGraph, projection: nn.Linear) -> None:
        super().__init__()
        self.encoder, self.projection = encoder, projection

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, T, F), lengths (N,) int64 -> (N, T', J), lengths (N,) int64."""
        encoded, lengths = self.encoder(x, lengths)
        return self.projection(encoded), lengths


class LastLabels(nn.Module):
    """A stateless predictor on the last labels, and its projection."""

    def __init__(self, decoder: StatelessDecoder, projection: nn.Linear) -> None:
        super().__init__()
        self.embed, self.projection = decoder.embed, projection
        self.conv = decoder.conv if decoder.context_size > 1 else None

    def forward(self, labels: Tensor) -> Tensor:
        """labels (N, context) int64, -1 for missing labels -> (N, J)."""
        embedded = self.embed(labels.clamp(min=0))  # a missing label counts as the blank
        if self.conv is None:
            return cast(Tensor, self.projection(embedded[:, -1]))
        return cast(Tensor, self.projection(F.relu(self.conv(embedded.transpose(1, 2))).squeeze(-1)))


class Joiner(nn.Module):
    """Logits from a frame and a predictor output. ``forbidden``: tokens that are never output."""

    def __init__(self, joint: Any, forbidden: Sequence[int]) -> None:
        super().__init__()
        self.activation = joint.joint_activation
        self.output = without(joint.lin_out, forbidden)

    def forward(self, encoded: Tensor, decoded: Tensor) -> Tensor:
        """encoded, decoded (N, J) -> (N, V)."""
        return cast(Tensor, self.output(self.activation(encoded + decoded)))
