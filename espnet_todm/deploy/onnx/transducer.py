"""A transducer's three graphs: encoder, decoder (the prediction network) and joiner.

A stateless decoder makes icefall's form. A recurrent one makes NeMo's, which hands two states along, takes features as
(N, F, T), and has the blank as its last token. In both, the projections into the joiner's space belong to encoder and
decoder, so that they run once for a frame and once for a label.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from espnet2.asr.decoder.transducer_decoder import TransducerDecoder
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_todm.decoders.stateless import StatelessDecoder
from espnet_todm.deploy.onnx.graph import EncoderGraph, without


class ProjectedEncoder(nn.Module):
    """From features to the joiner's space."""

    def __init__(self, encoder: EncoderGraph, projection: nn.Linear) -> None:
        super().__init__()
        self.encoder, self.projection = encoder, projection

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, T, F), lengths (N,) int64 -> (N, T', J), lengths (N,) int64."""
        encoded, lengths = self.encoder(x, lengths)
        return self.projection(encoded), lengths


class LastLabels(nn.Module):
    """A stateless decoder on the last labels."""

    def __init__(self, decoder: StatelessDecoder, projection: nn.Linear) -> None:
        super().__init__()
        self.embed, self.projection = decoder.embed, projection
        self.conv = decoder.conv if decoder.context_size > 1 else None

    def forward(self, labels: Tensor) -> Tensor:
        """labels (N, context) int64, -1 where there is none yet -> (N, J)."""
        embedded = self.embed(labels.clamp(min=0))  # none and the blank are alike
        if self.conv is None:
            return cast(Tensor, self.projection(embedded[:, -1]))
        return cast(Tensor, self.projection(F.relu(self.conv(embedded.transpose(1, 2))).squeeze(-1)))


class Joiner(nn.Module):
    """Logits of one frame after some labels; what is no text is never the likeliest."""

    def __init__(self, joint: Any, forbidden: Sequence[int]) -> None:
        super().__init__()
        self.activation = joint.joint_activation
        self.output = without(joint.lin_out, forbidden)

    def forward(self, encoded: Tensor, decoded: Tensor) -> Tensor:
        """encoded, decoded (N, J) -> (N, V)."""
        return cast(Tensor, self.output(self.activation(encoded + decoded)))


class NemoEncoder(nn.Module):
    """:class:`ProjectedEncoder` with time as the last dimension on both sides."""

    def __init__(self, encoder: ProjectedEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """x (N, F, T), lengths (N,) int64 -> (N, J, T'), lengths (N,) int64."""
        encoded, lengths = self.encoder(x.transpose(1, 2), lengths)
        return encoded.transpose(1, 2), lengths


class NemoDecoder(nn.Module):
    """ESPnet's recurrent decoder, a step at a time. Without an LSTM's second state it hands on what it got."""

    def __init__(self, decoder: TransducerDecoder, projection: nn.Linear) -> None:
        super().__init__()
        self.embed = copy.deepcopy(decoder.embed)
        order = blank_last(list(range(decoder.odim)))
        self.embed.weight.data = decoder.embed.weight.data[order]
        self.embed.padding_idx = None
        self.layers, self.projection = decoder.decoder, projection

    def forward(
        self, labels: Tensor, lengths: Tensor, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """labels (N, U) int32, lengths (N,) int32, states (layers, N, H) -> (N, J, U), lengths, states."""
        outputs = self.embed(labels.long())
        states = []
        for number, layer in enumerate(self.layers):
            state = hidden[number : number + 1], cell[number : number + 1]
            if isinstance(layer, nn.LSTM):
                outputs, state = layer(outputs, state)
            else:
                outputs, first = layer(outputs, state[0])
                state = first, state[1]
            states.append(state)
        after, cells = (torch.cat(one) for one in zip(*states))
        return self.projection(outputs).transpose(1, 2), lengths + 0, after, cells


class NemoJoiner(nn.Module):
    """:class:`Joiner` for every pair of a frame and a label, with the blank as the last token."""

    def __init__(self, joint: Any, forbidden: Sequence[int]) -> None:
        super().__init__()
        self.joiner = Joiner(joint, forbidden)
        output = self.joiner.output
        order = blank_last(list(range(output.out_features)))
        output.weight.data, output.bias.data = output.weight.data[order], output.bias.data[order]

    def forward(self, encoded: Tensor, decoded: Tensor) -> Tensor:
        """encoded (N, J, T), decoded (N, J, U) -> (N, T, U, V)."""
        return cast(Tensor, self.joiner(encoded.transpose(1, 2).unsqueeze(2), decoded.transpose(1, 2).unsqueeze(1)))


def blank_last(values: list[Any]) -> list[Any]:
    """What belongs to the tokens, the blank being token 0, in NeMo's order."""
    return [*values[1:], values[0]]
