"""Multi-head state space layer (Fathullah et al., arXiv 2305.12498) with removable heads.

Every channel of every head is a diagonal state space model (S4D; Gu et al., arXiv 2206.11893) of N states, N/2
conjugate
pairs: ``K_l = 2 Re sum_n C_n Bbar_n exp(l dt A_n)`` with ``Bbar_n = (exp(dt A_n) - 1) / A_n`` and ``y = K * u + D u``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Optional

import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Tensor, nn

from espnet_todm.elastic.base import Context, Cut, ElasticModule, KeepIndices, last_linear
from espnet_todm.errors import UserError
from espnet_todm.precision import at_least_float32

INITS = ("lin", "inv")
MIDDLE_STEP, STEP_RANGE = 0.01, 10.0  # dt starts log-uniform from a tenth to ten times 0.01
_OF_CHANNELS = ("log_step", "log_decay", "frequency", "coefficients", "skip", "mix_weight", "mix_bias")


class ElasticStateSpace(ElasticModule):
    """``linear_out(gate(state spaces(linear_in(x))))``; each head has ``stack`` stages of state spaces in series.

    A stage is ``mix(activation(y))`` with y the outputs of a head's state spaces, in both directions if
    ``bidirectional``, and ``mix`` a linear map inside the head. With inter-head gating, heads form pairs, and the first
    of a pair is multiplied by the activation of the second. A component is then a pair of heads, otherwise one head.

    Padded frames are zero before every stage. Backward in time, a state space is a correlation with its kernel, so no
    sequence is reversed and the lengths of utterances have no effect. Kernels and Fourier transforms are in float32,
    also under autocast.

    The parameters of the dynamics have values near one, like weights, so that optimizers can treat them alike
    (ScaledAdam shrinks values above 3): dt = 0.01 * 10^log_step, Re A = -exp(log_decay), Im A = frequency times its
    largest initial value.

    Sizes: C = heads * head_dim channels, M = state / 2 pairs, L = stack, R = 2 directions or 1.

    Raises UserError for an odd number of heads with gating, an odd ``state`` and an unknown ``init``.
    """

    cuts: ClassVar[Mapping[str, Cut]] = {
        "linear_in.weight": Cut(0),
        "linear_in.bias": Cut(0),
        "linear_out.weight": Cut(1),
        **{name: Cut(1) for name in _OF_CHANNELS},
    }
    last: ClassVar[str] = "linear_out"

    def __init__(
        self,
        size: int,
        heads: int,
        head_dim: int,
        activation: nn.Module,
        state: int = 16,
        init: str = "lin",
        stack: int = 1,
        gating: bool = True,
        bidirectional: bool = True,
    ) -> None:
        if gating and heads % 2:
            raise UserError(f"ssm_heads: {heads} is odd; head_gating: true pairs heads, so their number must be even")
        if state < 2 or state % 2:
            raise UserError(f"ssm_state: {state!r} must be an even number above 0: states come in conjugate pairs")
        if init not in INITS:
            raise UserError(f"ssm_init: {init!r} is unknown; allowed: {', '.join(INITS)}")
        super().__init__(heads // 2 if gating else heads)
        self.head_dim, self.gating, self.bidirectional, self.stack = head_dim, gating, bidirectional, stack
        self.activation = activation
        channels, directions = heads * head_dim, 2 if bidirectional else 1
        self.linear_in = nn.Linear(size, channels)
        self.log_step = nn.Parameter(torch.empty(stack, channels))
        self.log_decay = nn.Parameter(torch.empty(stack, channels, state // 2))
        self.frequency = nn.Parameter(torch.empty(stack, channels, state // 2))
        self.coefficients = nn.Parameter(torch.empty(stack, channels, directions, state))
        self.skip = nn.Parameter(torch.empty(stack, channels, directions))
        self.mix_weight = nn.Parameter(torch.empty(stack, heads, head_dim, directions * head_dim))
        self.mix_bias = nn.Parameter(torch.empty(stack, channels))
        self.linear_out = nn.Linear(channels // 2 if gating else channels, size)
        # In rad per unit of time; a single pair of "lin" has frequency 0.
        self.init, self.fastest = init, float(frequencies(state, init).max()) or 1.0
        self.espnet_initialization_fn()

    @torch.no_grad()
    def espnet_initialization_fn(self) -> None:
        """S4D's initialisation. If a configuration has ``init``, ESPnet calls this after it has initialised all
        matrices, since the dynamics must not be drawn from that distribution.
        """
        self.log_step.uniform_(-1.0, 1.0)
        self.log_decay.fill_(math.log(0.5))
        self.frequency.copy_(frequencies(self.coefficients.size(-1), self.init) / self.fastest)
        self.coefficients.normal_(std=math.sqrt(0.5))
        self.skip.normal_()
        bound = 1 / math.sqrt(self.mix_weight.size(-1))  # as nn.Linear starts
        self.mix_weight.uniform_(-bound, bound)
        self.mix_bias.uniform_(-bound, bound)

    def flops(self, frames: int) -> float:
        """Matrix products, including those of the kernels, and 2.5 n log2(n) for each Fourier transform of n real
        numbers. There is one transform of the input and, per direction, one of the kernel and one back.
        """
        stack, channels, directions, state = self.coefficients.shape
        weights = self.linear_in.weight.numel() + self.mix_weight.numel() + self.linear_out.weight.numel()
        rows, columns = _tiles(frames)
        kernels = stack * channels * directions * rows * columns * state
        length = next_fast_len(2 * frames - 1, real=True)
        transforms = stack * channels * (1 + 2 * directions) * 2.5 * length * math.log2(length)
        return 2.0 * (frames * weights + kernels) + transforms

    def run(self, x: Tensor, context: Context, kept: KeepIndices, gates: Optional[Tensor]) -> Tensor:
        result: Tensor = self(x, context.mask, kept, gates)
        return result

    def forward(self, x: Tensor, mask: Tensor, kept: KeepIndices = None, gates: Optional[Tensor] = None) -> Tensor:
        """x (B, T, D), mask (B, 1, T) true at valid frames -> (B, T, D)."""
        hidden = self._heads(x, kept)
        for stage in range(self.stack):
            with torch.autocast(x.device.type, enabled=False):
                outputs = self.filtered(at_least_float32(hidden.masked_fill(~mask, 0.0)), stage, kept)
            hidden = self._mix(outputs.to(hidden.dtype), stage, kept)
        return self._project(hidden, kept, gates)

    def filtered(self, signal: Tensor, stage: int, kept: KeepIndices) -> Tensor:
        """signal (B, C, T), float32 at least -> outputs (B, C, R, T) of a stage's state spaces."""
        frames = signal.size(-1)
        kernels = state_space_kernel(*self._discrete(stage, kept), frames=frames)
        skip = self.take("skip", kept)[stage].unsqueeze(-1)  # D u is one more K_0
        return convolve(signal, kernels + F.pad(skip, (0, frames - 1)))

    def stream_width(self, components: int) -> int:
        """Numbers per utterance in the state of :meth:`stream`, with this number of components."""
        stack, channels, _, state = self.coefficients.shape
        return int(stack * state * channels // self.components * components)

    def stream(self, x: Tensor, state: Tensor, kept: KeepIndices = None) -> tuple[Tensor, Tensor]:
        """A chunk of a layer with one direction: x (B, J, D), state (B, W) float32 -> (B, J, D), the next chunk's state.
        The state is zero before the first frame. All chunks together give the output of ``forward``.
        """
        hidden, states = self._heads(x, kept), []
        befores = state.reshape(x.size(0), self.stack, -1, self.coefficients.size(-1))
        for stage in range(self.stack):
            with torch.autocast(x.device.type, enabled=False):
                outputs, after = self.filtered_chunk(at_least_float32(hidden), befores[:, stage], stage, kept)
            states.append(after.flatten(1))
            hidden = self._mix(outputs.to(hidden.dtype), stage, kept)
        return self._project(hidden, kept, None), torch.cat(states, dim=1)

    def filtered_chunk(self, signal: Tensor, before: Tensor, stage: int, kept: KeepIndices) -> tuple[Tensor, Tensor]:
        """signal (B, C, J), before (B, C, 2M): what earlier frames leave in the states at the chunk's first frame, real
        parts first -> outputs (B, C, 1, J) of a stage's state spaces, the same of the next chunk.
        """
        log_transition, output = self._discrete(stage, kept)
        frames, carried = signal.size(-1), torch.complex(*before.chunk(2, dim=-1))
        powers = torch.exp(
            log_transition.unsqueeze(-1) * torch.arange(frames + 1, device=signal.device)
        )  # (C, M, J + 1)
        earlier = 2 * torch.einsum("bcm,crm,cmj->bcrj", carried, output, powers[..., :frames]).real
        entering = torch.einsum("bcj,cmj->bcm", signal.to(powers.dtype), powers.flip(-1)[..., :frames])
        after = carried * powers[..., frames] + entering
        return self.filtered(signal, stage, kept) + earlier, torch.cat([after.real, after.imag], dim=-1)

    def _heads(self, x: Tensor, kept: KeepIndices) -> Tensor:
        """x (B, T, D) -> (B, C, T)."""
        weight, bias = self.take("linear_in.weight", kept), self.take("linear_in.bias", kept)
        return F.linear(x, weight, bias).transpose(1, 2)

    def _discrete(self, stage: int, kept: KeepIndices) -> tuple[Tensor, Tensor]:
        """dt A (C, M) and C Bbar (C, R, M), complex, of a stage."""
        names = ("log_step", "log_decay", "frequency", "coefficients")
        log_step, log_decay, frequency, coefficients = (
            at_least_float32(self.take(name, kept)[stage]) for name in names
        )
        transition = torch.complex(-log_decay.exp(), frequency * self.fastest)
        log_transition = (MIDDLE_STEP * STEP_RANGE**log_step).unsqueeze(-1) * transition
        entry = (torch.exp(log_transition) - 1) / transition
        pairs = torch.view_as_complex(coefficients.contiguous().unflatten(-1, (-1, 2)))
        return log_transition, pairs * entry.unsqueeze(1)

    def _mix(self, outputs: Tensor, stage: int, kept: KeepIndices) -> Tensor:
        """outputs (B, C, R, T) of state spaces -> (B, C, T)."""
        weight, bias = self.take("mix_weight", kept)[stage], self.take("mix_bias", kept)[stage]
        batch, frames = outputs.size(0), outputs.size(-1)  # unflatten would make them constants in an ONNX export
        grouped = self.activation(outputs).reshape(batch, len(weight), -1, frames)  # (B, heads, head_dim * R, T)
        return (weight @ grouped).flatten(1, 2) + bias.unsqueeze(-1)

    def _project(self, hidden: Tensor, kept: KeepIndices, gates: Optional[Tensor]) -> Tensor:
        """hidden (B, C, T) -> (B, T, D)."""
        if self.gating:
            pairs = hidden.view(hidden.size(0), -1, 2, self.head_dim, hidden.size(-1))
            value, gate = pairs.unbind(2)
            hidden = (value * self.activation(gate)).flatten(1, 2)
        hidden = hidden.transpose(1, 2)
        weight, bias = self.take("linear_out.weight", kept), self.linear_out.bias
        return last_linear(hidden, weight, bias, gates)


def frequencies(state: int, init: str) -> Tensor:
    """Initial Im A_n of the N/2 pairs (arXiv 2206.11893, 4): pi n, or (N / pi) (N / (2n + 1) - 1); Re A_n is -1/2."""
    pair = torch.arange(state // 2, dtype=torch.float32)
    return math.pi * pair if init == "lin" else state / math.pi * (state / (2 * pair + 1) - 1)


def state_space_kernel(log_transition: Tensor, output: Tensor, frames: int) -> Tensor:
    """``K_l = 2 Re sum_m output_m exp(l log_transition_m)`` for l < frames: complex (C, M), (C, R, M) ->
    (C, R, frames).

    With l = i J + j, every power is a product of a power for i and one for j. This needs about 2 sqrt(frames)
    exponentials per state instead of one per frame, and the sum over states is a product of real matrices.
    """
    rows, columns = _tiles(frames)
    counts = [torch.arange(n, device=output.device, dtype=output.real.dtype) for n in (rows, columns)]
    first = torch.exp(log_transition.unsqueeze(1) * (columns * counts[0]).unsqueeze(-1))  # (C, I, M)
    first = 2 * output.unsqueeze(2) * first.unsqueeze(1)  # (C, R, I, M)
    second = torch.exp(log_transition.unsqueeze(-1) * counts[1])  # (C, M, J)
    left = torch.cat([first.real, -first.imag], dim=-1).flatten(1, 2)  # (C, R I, 2M)
    right = torch.cat([second.real, second.imag], dim=1)  # (C, 2M, J)
    return (left @ right).unflatten(1, (-1, rows)).flatten(2)[..., :frames]


def convolve(signal: Tensor, kernels: Tensor) -> Tensor:
    """signal (B, C, T), kernels (C, R, T), real -> (B, C, R, T). The first direction is causal, ``sum_l K_l u_(t-l)``.
    The second, if there is one, is anticausal, ``sum_l K_l u_(t+l)``.
    """
    frames = signal.size(-1)
    length = next_fast_len(2 * frames - 1, real=True)
    transformed = torch.fft.rfft(kernels, length)
    if kernels.size(1) == 2:
        transformed = torch.stack([transformed[:, 0], transformed[:, 1].conj()], dim=1)
    spectrum = torch.fft.rfft(signal, length).unsqueeze(2) * transformed
    return torch.fft.irfft(spectrum, length)[..., :frames]


def _tiles(frames: int) -> tuple[int, int]:
    """Rows I and columns J, about equal, with I J >= ``frames``."""
    columns = math.isqrt(frames - 1) + 1
    return -(-frames // columns), columns
