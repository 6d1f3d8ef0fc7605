"""State space layers without Fourier transforms, which few runtimes have. They run in chunks and pass a state between them.

Inside a chunk of J frames, the convolution with the kernel is a product with its J x J Toeplitz matrix. Earlier chunks only
contribute through the state at the start of the chunk: N numbers per channel. So the cost is linear in the length of an
utterance, the length is not limited, and the result equals that of the Fourier transform to float32 precision.

The graph computes the matrices from the layer's few parameters. A runtime does this once, when it loads the file.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor, nn

from espnet_todm.elastic.base import KeepIndices
from espnet_todm.elastic.state_space import ElasticStateSpace

CHUNK = 32  # J
DOMAIN, CARRY = "todm", "Carry"  # custom operator in torch's export, later replaced by a Scan
FILTERS = "/filters."  # part of the name of every node of a ChunkedFilter


class OnnxStateSpace(ElasticStateSpace):
    """The layer ``source`` with its parameters, run in chunks, always with all components."""

    def __init__(self, source: ElasticStateSpace) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(source.__dict__)
        with torch.no_grad():
            discrete = [source.double()._discrete(stage, None) for stage in range(source.stack)]
        source.float()
        self.filters = nn.ModuleList(ChunkedFilter(*stage, skip) for stage, skip in zip(discrete, source.skip.detach()))

    def filtered(self, signal: Tensor, stage: int, kept: KeepIndices) -> Tensor:
        del kept
        result: Tensor = self.filters[stage](signal)
        return result

    def filtered_chunk(self, signal: Tensor, before: Tensor, stage: int, kept: KeepIndices) -> tuple[Tensor, Tensor]:
        del kept
        result: tuple[Tensor, Tensor] = self.filters[stage](signal, before)
        return result


class ChunkedFilter(nn.Module):
    """State spaces of C channels in R directions.

    Args:
        log_transition: dt A, (C, M) complex, for M = N / 2 conjugate pairs.
        output: C Bbar, (C, R, M) complex.
        skip: D, (C, R).
    """

    def __init__(self, log_transition: Tensor, output: Tensor, skip: Tensor) -> None:
        super().__init__()
        self.register_buffer("decay", torch.stack([log_transition.real, log_transition.imag]).float())  # (2, C, M)
        self.register_buffer("output", torch.stack([2 * output.real, 2 * output.imag]).float())  # (2, C, R, M)
        self.register_buffer("skip", skip.float())
        steps = torch.arange(CHUNK)
        behind = steps - steps.unsqueeze(1)  # [j', j]: frames from j' to j
        both = torch.stack([behind, -behind][: skip.size(1)], dim=1)  # (J, R, J)
        # Index of each entry of the Toeplitz matrices in the flattened taps (R, J + 1), whose last column is zero.
        places = torch.where(both < 0, torch.full_like(both, CHUNK), both)
        places = places + (CHUNK + 1) * torch.arange(skip.size(1)).unsqueeze(-1)
        self.register_buffer("places", places.flatten(1))  # (J, R J)

    def forward(self, signal: Tensor, before: Optional[Tensor] = None) -> Any:
        """signal (B, C, T) -> (B, C, R, T), equal to :func:`espnet_todm.elastic.state_space.convolve` with the kernels.

        With ``before``, the signal is a chunk of speech, see :meth:`ElasticStateSpace.filtered_chunk`.
        """
        return self._whole(signal) if before is None else self._continued(signal, before)

    def _continued(self, signal: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """signal (B, C, J) with a fixed J, before (B, C, 2 M) -> (B, C, 1, J), (B, C, 2 M). For one direction."""
        real, imaginary = self._powers()
        toeplitz, reading = self._toeplitz(real, imaginary), self._reading(real, imaginary, 0)
        powers = torch.cat([real, imaginary], dim=1)  # (C, 2 M, J + 1)
        frames, state, outputs = int(signal.size(-1)), before, []
        for start in range(0, frames, CHUNK):
            count = min(CHUNK, frames - start)
            piece = signal[..., start : start + count].unsqueeze(2)  # (B, C, 1, n)
            outputs.append(piece @ toeplitz[:, :count, :count] + state.unsqueeze(2) @ reading[..., :count])
            entering = (piece @ powers[..., 1 : count + 1].flip(-1).transpose(1, 2)).squeeze(2)
            state = _decayed(state, *_factors(powers[..., count])) + entering
        return torch.cat(outputs, dim=-1), state

    def _whole(self, signal: Tensor) -> Tensor:
        batch, channels, frames = signal.size(0), signal.size(1), signal.size(2)
        chunks = (frames + (CHUNK - 1)) // CHUNK
        padded = nn.functional.pad(signal, (0, CHUNK - 1))[..., : chunks * CHUNK]
        pieces = padded.reshape(batch, channels, chunks, CHUNK)
        real, imaginary = self._powers()
        outputs = pieces @ self._toeplitz(real, imaginary)  # (B, C, n, R J)
        outputs = outputs.reshape(batch, channels, chunks, -1, CHUNK)
        carried = self._carried(pieces, real, imaginary)  # (B, C, n, R, J)
        return (outputs + carried).transpose(2, 3).reshape(batch, channels, -1, chunks * CHUNK)[..., :frames]

    def _powers(self) -> tuple[Tensor, Tensor]:
        """exp(j dt A) for j = 0 .. J, real and imaginary parts (C, M, J + 1)."""
        # A matrix product, because the exporter would fold an elementwise product into a large constant.
        steps = torch.arange(CHUNK + 1, dtype=torch.float32).unsqueeze(0)
        growth, angle = self.get_buffer("decay").unsqueeze(-1) @ steps
        size = torch.exp(growth)
        return size * torch.cos(angle), size * torch.sin(angle)

    def _toeplitz(self, real: Tensor, imaginary: Tensor) -> Tensor:
        """Toeplitz matrices (C, J, R J): the contribution of each frame of a chunk to the outputs of each frame."""
        output = self.get_buffer("output")
        taps = output[0] @ real[..., :CHUNK] - output[1] @ imaginary[..., :CHUNK]  # (C, R, J)
        first = taps[..., :1] + self.get_buffer("skip").unsqueeze(-1)
        taps = torch.cat([first, taps[..., 1:], torch.zeros_like(first)], dim=-1).flatten(1)
        return taps[:, self.get_buffer("places")]

    def _carried(self, pieces: Tensor, real: Tensor, imaginary: Tensor) -> Tensor:
        """Chunks (B, C, n, J) -> contributions of all other chunks to their outputs, (B, C, n, R, J)."""
        powers = torch.cat([real, imaginary], dim=1)  # (C, 2 M, J + 1)
        ahead, back = powers[..., :CHUNK], powers.flip(-1)[..., :CHUNK]  # exponents 0 .. J - 1 and J .. 1
        states = carry(
            *((pieces @ entry.transpose(1, 2)) for entry in (back, ahead)[: self.get_buffer("skip").size(1)]),
            decay=powers[..., CHUNK],
        )
        outputs = [state @ self._reading(real, imaginary, direction) for direction, state in enumerate(states)]
        return torch.stack(outputs, dim=3)

    def _reading(self, real: Tensor, imaginary: Tensor, direction: int) -> Tensor:
        """What each frame of a chunk hears of the state at the chunk's start, for the second direction at its end:
        (C, 2 M, J)."""
        if direction:  # exponents J .. 1 in place of 0 .. J - 1
            real, imaginary = real.flip(-1), imaginary.flip(-1)
        first, second = real[..., :CHUNK], imaginary[..., :CHUNK]
        one, other = self.get_buffer("output")[:, :, direction].unsqueeze(-1)  # (C, M, 1)
        return torch.cat([one * first - other * second, -one * second - other * first], dim=1)


def carry(*entering: Tensor, decay: Tensor) -> tuple[Tensor, ...]:
    """States at the start of chunks, (B, C, n, 2 M). ``entering`` (B, C, n, 2 M): the contribution of each chunk to the next
    state, real parts first. ``decay`` (C, 2 M): over one chunk. The second direction runs backward: states at the end."""
    states: Any = Carry.apply(*_factors(decay), *entering)
    return states if isinstance(states, tuple) else (states,)


def _factors(decay: Tensor) -> tuple[Tensor, Tensor]:
    """decay (C, 2 M), real parts first -> factors (C, 2 M) of a state and of its exchanged halves, for :func:`_decayed`."""
    real, imaginary = decay.chunk(2, dim=-1)
    return torch.cat([real, real], dim=-1), torch.cat([-imaginary, imaginary], dim=-1)


def _decayed(state: Tensor, same: Tensor, crossed: Tensor) -> Tensor:
    """state (B, C, 2 M) times a complex decay: the product of complex numbers."""
    return state * same + torch.cat(state.chunk(2, dim=-1)[::-1], dim=-1) * crossed


class Carry(torch.autograd.Function):
    """The recurrence of :func:`carry`: a loop in torch, one operator in a graph. :func:`as_scans` turns it into a Scan."""

    @staticmethod
    def forward(ctx: Any, same: Tensor, crossed: Tensor, *entering: Tensor) -> Any:
        """same, crossed (C, 2 M), entering (B, C, n, 2 M) for each direction -> states, of the same shape."""
        return tuple(_recurrence(same, crossed, one, bool(number)) for number, one in enumerate(entering))

    @staticmethod
    def symbolic(g: Any, same: Any, crossed: Any, *entering: Any) -> Any:
        made = g.op(f"{DOMAIN}::{CARRY}", same, crossed, *entering, outputs=len(entering))
        states = made if isinstance(made, (tuple, list)) else (made,)
        for state, one in zip(states, entering):
            state.setType(one.type())
        return made


def _recurrence(same: Tensor, crossed: Tensor, entering: Tensor, backward: bool) -> Tensor:
    pieces = list(entering.unbind(2))
    state, states = torch.zeros_like(pieces[0]), []
    for piece in reversed(pieces) if backward else pieces:
        states.append(state)
        state = _decayed(state, same, crossed) + piece
    return torch.stack(states[::-1] if backward else states, dim=2)


def as_scans(model: Any, onnx: Any) -> None:
    """Replace every Carry of an ONNX model by standard operators, in place."""
    nodes = []
    opset = next(opset.version for opset in model.opset_import if not opset.domain)
    halves = {"num_outputs": 2} if opset >= 18 else {}  # attributes of a Split into two
    for node in model.graph.node:
        nodes += _scan(node, halves, onnx.helper, onnx.TensorProto) if node.domain == DOMAIN else [node]
    nodes = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    kept = [opset for opset in model.opset_import if opset.domain != DOMAIN]
    kept = [type(opset).FromString(opset.SerializeToString()) for opset in kept]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def _scan(node: Any, halves: dict[str, int], helper: Any, types: Any) -> list[Any]:
    """The nodes that replace one Carry."""
    *decay, first = node.input[:3]
    entering, prefix, make = node.input[2:], f"{node.output[0]}/", helper.make_node
    zero = helper.make_tensor(f"{prefix}zero", types.FLOAT, [], [0.0])
    axis = helper.make_tensor(f"{prefix}axis", types.INT64, [1], [2])
    start = f"{prefix}start"  # zeros of the shape of one chunk
    before = [
        make("Constant", [], [zero.name], value=zero),
        make("Constant", [], [axis.name], value=axis),
        make("Mul", [first, zero.name], [f"{prefix}zeros"]),
        make("ReduceSum", [f"{prefix}zeros", axis.name], [start], keepdims=0),
    ]
    for made in before:
        made.name = made.output[0]
    count, axes, directions = len(entering), [2] * len(entering), list(range(len(entering)))
    unused = [f"{prefix}last{number}" for number in range(2 + count)]
    return [
        *before,
        make(
            "Scan", [*decay, *[start] * count, *entering], [*unused, *node.output], name=f"{prefix}scan",
            body=_body(count, halves, helper, types), num_scan_inputs=count, scan_input_axes=axes,
            scan_output_axes=axes, scan_input_directions=directions, scan_output_directions=directions,
        ),
    ]  # fmt: skip


def _body(directions: int, halves: dict[str, int], helper: Any, types: Any) -> Any:
    """The Scan's body for one chunk: decay, states, entering -> decay, next states, previous states.

    The decay is passed through as a state, because tools that convert dtypes do not convert values of the outer graph.
    """
    nodes, make = [], helper.make_node
    nodes += [make("Identity", [name], [f"{name}_on"]) for name in ("same", "crossed")]
    numbers = range(directions)
    for n in numbers:
        nodes += [
            make("Split", [f"state{n}"], [f"real{n}", f"imaginary{n}"], axis=-1, **halves),
            make("Concat", [f"imaginary{n}", f"real{n}"], [f"swapped{n}"], axis=-1),
            make("Mul", [f"state{n}", "same"], [f"straight{n}"]),
            make("Mul", [f"swapped{n}", "crossed"], [f"across{n}"]),
            make("Add", [f"straight{n}", f"across{n}"], [f"decayed{n}"]),
            make("Add", [f"decayed{n}", f"entering{n}"], [f"next{n}"]),
            make("Identity", [f"state{n}"], [f"before{n}"]),
        ]

    def values(*names: str) -> list[Any]:
        each = [f"{name}{n}" for name in names[2:] for n in numbers]
        return [helper.make_tensor_value_info(name, types.FLOAT, None) for name in [*names[:2], *each]]

    inputs = values("same", "crossed", "state", "entering")
    return helper.make_graph(nodes, "chunk", inputs, values("same_on", "crossed_on", "next", "before"))


def replace(module: nn.Module) -> None:
    """Replace every state space layer in a module by one that runs in chunks."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ElasticStateSpace):
                setattr(parent, name, OnnxStateSpace(child))


def has_state_space(module: nn.Module) -> bool:
    """Whether :func:`replace` found anything."""
    return any(isinstance(part, OnnxStateSpace) for part in module.modules())
