"""Greedy search of transducers on a whole batch at once.

It finds the labels of ESPnet's greedy search, which takes one utterance at a time and reads each label from the device. Here
the labels stay on the device until the last frame, so the host waits once for a batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from espnet_todm.decoders.stateless import StatelessDecoder
from espnet_todm.util.host import values

State = tuple[Tensor, ...]  # of a predictor, each tensor with the utterances in its last dimension but one


def greedy_search(decoder: Any, joint: Any, encoded: Tensor, lengths: Tensor) -> list[list[int]]:
    """encoded (B, T, D) float, lengths (B,) -> labels of each utterance without blanks, at most one per frame.

    decoder: ESPnet's TransducerDecoder, or a StatelessDecoder. joint: ESPnet's joiner, or a TextJoint.
    """
    ends = values(lengths)
    frames = joint.lin_enc(encoded[:, : max(ends, default=0)]).unbind(1)
    if not frames:
        return [[] for _ in ends]
    decoder.set_device(encoded.device)
    blanks = torch.full((len(encoded),), decoder.blank_id, device=encoded.device)
    output, *state = _step(decoder, blanks, _first_state(decoder, blanks))
    found = []
    for frame in frames:
        labels = joint(frame, joint.lin_dec(output), no_projection=True).argmax(-1)
        found.append(labels)
        said = (labels != decoder.blank_id).unsqueeze(-1)
        if said.device.type == "cpu" and not said.any():  # where reading costs nothing
            continue
        new = _step(decoder, labels, tuple(state))
        output, *state = (torch.where(said, after, before) for after, before in zip(new, (output, *state)))
    rows = torch.stack(found, 1).tolist()
    # What is found behind the end of an utterance is cut off here.
    return [[label for label in row[:end] if label != decoder.blank_id] for row, end in zip(rows, ends)]


def _first_state(decoder: Any, blanks: Tensor) -> State:
    """The state before the first label."""
    if isinstance(decoder, StatelessDecoder):
        return (blanks.unsqueeze(1).expand(-1, decoder.context_size),)
    return _tensors(decoder.init_state(len(blanks)))


def _step(decoder: Any, labels: Tensor, state: State) -> State:
    """Next labels (B,), state -> output (B, D) and new state."""
    if isinstance(decoder, StatelessDecoder):
        context = torch.cat([state[0][:, 1:], labels.unsqueeze(1)], dim=1)
        return decoder.after(context), context
    hidden, cell = (*state, None)[:2]
    outputs, new = decoder.rnn_forward(decoder.embed(labels.unsqueeze(1)), (hidden, cell))
    return outputs.squeeze(1), *_tensors(new)


def _tensors(state: Any) -> State:
    """A GRU has no cell."""
    return tuple(tensor for tensor in state if tensor is not None)
