"""Alpha-divergence from a teacher p to a student q, with a clipped gradient for stable training.

Definition (Minka 2005), with r = p / q:

    D_a(p || q) = (E_q[r^a] - 1) / (a (a - 1)),    a -> 1: KL(p || q),    a -> 0: KL(q || p)

A negative alpha penalises a student with probability mass where the teacher has none. alpha = 1 penalises a student
that misses the teacher's mass. The adaptive form (AlphaNet, Wang et al. 2021, arXiv 2102.07954) takes the larger of two
divergences, separately for each distribution.
Its gradient estimate bounds the power of the ratio by a clip c: with w = min(r^a, c) and sg = stop gradient,

    g_a = - sum_i sg(q_i rho_i) log q_i,    rho = w / a + constant

The constant does not change the gradient, since sum_i q_i d log q_i = 0. Here it is chosen for numerical accuracy. With
e = w - 1 (a limit takes the derivative's form: e = min(log r, log c) for a -> 0; a = 1 is not clipped) and S = E_q[e]:

    value D = S / (a (a - 1)),    dg / dz_j = q_j (S - e_j) / a,    z being the student's logits

Value and gradient use the same clip: the value is the divergence *under the clip*. It equals the exact divergence if no
ratio reaches the clip. The adaptive choice compares these clipped values, for two reasons. The exact D_{-1} is of
the order of exp(logit range) for two peaky distributions, so its average over frames has no meaning. And if a student
is wrong with high confidence, the clipped gradient for a = -1 vanishes with 1 - q, while the gradient of KL does not;
the exact values would choose the former. The clipped value is never below zero if 1 - c <= a <= 1, which ``Divergence``
checks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Optional, Union

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from espnet_todm.errors import UserError
from espnet_todm.precision import compute_dtype
from espnet_todm.util.checks import check_choice, is_number
from espnet_todm.util.host import places

KINDS = ("adaptive_alpha", "alpha", "kl", "reverse_kl")

_NEAR_LIMIT = 1e-3
"""An alpha this close to 0 or 1 uses the limit, since the general formula would divide by almost zero."""

_LOWEST = -1e9
"""Replaces log 0, so that the difference of two such values is a number."""

_BLOCK = {"cpu": 1 << 17, "cuda": 1 << 25}
"""Elements per block: on a CPU the five temporaries of a block stay in the cache, on a GPU there are few launches."""


@dataclass(frozen=True)
class Divergence:
    """The divergence from the teacher that a student is trained on. Raises UserError on construction.

    kind: ``adaptive_alpha`` (the larger of D at ``alpha_min`` and ``alpha_max``), ``alpha`` (D at ``alpha``), ``kl``
        (KL(teacher || student)) or ``reverse_kl`` (KL(student || teacher)); the last two are exact, never clipped.
    clip: upper bound c of (p / q)^alpha; every alpha must lie between 1 - clip and 1.
    """

    kind: str = "adaptive_alpha"
    alpha_min: float = -1.0
    alpha_max: float = 1.0
    clip: float = 5.0
    alpha: Optional[float] = None

    def __post_init__(self) -> None:
        check_choice("divergence kind", self.kind, KINDS)
        if not _is_number(self.clip) or self.clip <= 1:
            raise UserError(f"divergence clip: {self.clip!r} is not allowed; it must be a number above 1")
        if self.kind == "adaptive_alpha":
            self._check_alpha("alpha_min", self.alpha_min)
            self._check_alpha("alpha_max", self.alpha_max)
            if self.alpha_min >= self.alpha_max:
                raise UserError(f"divergence alpha_min: {self.alpha_min!r} must be below alpha_max: {self.alpha_max!r}")
        if self.kind == "alpha":
            self._check_alpha("alpha", self.alpha)
        elif self.alpha is not None:
            raise UserError(f"divergence alpha: {self.alpha!r} is only for kind: alpha, but kind is {self.kind!r}")

    def _check_alpha(self, key: str, value: Any) -> None:
        if not _is_number(value) or not 1 - self.clip <= value <= 1:
            allowed = f"a number between 1 - clip = {1 - self.clip:g} and 1"
            raise UserError(f"divergence {key}: {value!r} is not allowed; it must be {allowed}")

    def __call__(
        self,
        teacher_logits: Tensor,
        student_logits: Tensor,
        valid: Optional[Tensor] = None,
        count: Optional[int] = None,
    ) -> Tensor:
        """Loss of each distribution, with the clipped gradient for the student's logits and none for the teacher's.

        teacher_logits, student_logits: (..., V), any float dtype. The computation is in float32 or float64, also under
            autocast. Results are finite for logits of any scale.
        valid: (...) bool; where it is False, the loss and its gradient are 0 and the logits are not read.
        count: number of true entries of ``valid``, if known. Otherwise the device is waited for.
        Returns (...), float32 or float64. It can be differentiated once.
        Raises ValueError on shapes that do not match.
        """
        if teacher_logits.shape != student_logits.shape or student_logits.dim() == 0:
            raise ValueError(
                f"teacher_logits {tuple(teacher_logits.shape)} and student_logits {tuple(student_logits.shape)} "
                "must have one shape (..., V)"
            )
        shape, vocabulary = student_logits.shape[:-1], student_logits.shape[-1]
        rows = None
        if valid is not None:
            if valid.shape != shape or valid.dtype != torch.bool:
                raise ValueError(f"valid {tuple(valid.shape)} {valid.dtype} must be bool of shape {tuple(shape)}")
            flat = valid.reshape(-1)
            rows = flat.nonzero(as_tuple=True)[0] if count is None else places(flat, count)
        teacher, student = (logits.reshape(-1, vocabulary) for logits in (teacher_logits.detach(), student_logits))
        loss: Tensor = _ClippedDivergence.apply(teacher, student, rows, self)
        return loss.reshape(shape)

    def alphas(self) -> tuple[tuple[float, float], ...]:
        """(alpha, clip) pairs; each distribution uses the pair with the larger value."""
        if self.kind == "kl":
            return ((1.0, math.inf),)
        if self.kind == "reverse_kl":
            return ((0.0, math.inf),)
        if self.kind == "alpha" and self.alpha is not None:
            return ((_snap(self.alpha), self.clip),)
        return ((_snap(self.alpha_max), self.clip), (_snap(self.alpha_min), self.clip))


def alpha_divergence(teacher_logits: Tensor, student_logits: Tensor, alpha: float) -> Tensor:
    """Exact D_alpha(p || q), unclipped and differentiable by autograd, in float32 or float64.

    teacher_logits, student_logits: (..., V). Returns (...). For alpha outside [0, 1] it may overflow to inf.
    """
    dtype = compute_dtype(teacher_logits, student_logits)
    log_p, log_q = (
        torch.log_softmax(logits, -1, dtype=dtype).clamp(min=_LOWEST) for logits in (teacher_logits, student_logits)
    )
    log_r, alpha = log_p - log_q, _snap(alpha)
    if alpha == 1:
        return (log_p.exp() * log_r).sum(-1)
    if alpha == 0:
        return -(log_q.exp() * log_r).sum(-1)
    # log E_q[r^alpha] in log space: r^alpha may overflow where q r^alpha does not.
    return torch.expm1(torch.logsumexp(log_q + alpha * log_r, -1)) / (alpha * (alpha - 1))


class _ClippedDivergence(torch.autograd.Function):
    """Loss and gradient in one pass over blocks of rows; only the gradient is kept for the backward."""

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor, rows: Optional[Tensor], divergence: Divergence) -> Tensor:
        """teacher, student (N, V); rows (M,) int64, the rows to read, or None for all. Returns (N,)."""
        dtype = compute_dtype(teacher, student)
        wanted = ctx.needs_input_grad[1]
        loss = torch.zeros(len(student), dtype=dtype, device=student.device)
        gradient = torch.zeros(student.shape if wanted else (), dtype=dtype, device=student.device)
        for block in _blocks(student, rows):
            log_p = torch.log_softmax(teacher[block], -1, dtype=dtype).clamp_(min=_LOWEST)
            log_q = torch.log_softmax(student[block], -1, dtype=dtype).clamp_(min=_LOWEST)
            loss[block], block_gradient = _larger(log_p, log_q, divergence, wanted)
            if block_gradient is not None:
                gradient[block] = block_gradient
        ctx.student_dtype = student.dtype
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_of_loss: Tensor) -> tuple[None, Tensor, None, None]:
        """gradient_of_loss (N,). Returns the gradient of the student's logits (N, V)."""
        (gradient,) = ctx.saved_tensors
        return None, (gradient * gradient_of_loss.unsqueeze(-1)).to(ctx.student_dtype), None, None


def _larger(log_p: Tensor, log_q: Tensor, divergence: Divergence, wanted: bool) -> tuple[Tensor, Optional[Tensor]]:
    """The largest of the clipped divergences per row, and its gradient if wanted. log_p (M, V) is overwritten."""
    p, q = log_p.exp(), log_q.exp()
    log_r = log_p.sub_(log_q)
    (first_alpha, first_clip), *others = divergence.alphas()
    value, gradient = _clipped(log_r, p, q, first_alpha, first_clip, wanted)
    for alpha, clip in others:
        other, other_gradient = _clipped(log_r, p, q, alpha, clip, wanted)
        chosen = other > value
        value = torch.where(chosen, other, value)
        if gradient is not None and other_gradient is not None:
            gradient = torch.where(chosen.unsqueeze(-1), other_gradient, gradient)
    return value, gradient


def _clipped(
    log_r: Tensor, p: Tensor, q: Tensor, alpha: float, clip: float, wanted: bool
) -> tuple[Tensor, Optional[Tensor]]:
    """Value (M,) and gradient (M, V) for one alpha, by the formulas in the module's docstring. Values below 0 become 0."""
    if alpha == 1:
        return (p * log_r).sum(-1).clamp_(min=0), q - p if wanted else None
    if alpha == 0:
        e, slope = log_r.clamp(max=math.log(clip)), 1.0
    else:
        e, slope = (alpha * log_r).clamp_(max=math.log(clip)).expm1_(), alpha
    mean = (q * e).sum(-1, keepdim=True)
    value = (mean.squeeze(-1) / (slope * (alpha - 1))).clamp_(min=0)
    return value, torch.sub(mean, e).mul_(q).div_(slope) if wanted else None


def _blocks(logits: Tensor, rows: Optional[Tensor]) -> Iterator[Union[slice, Tensor]]:
    """Indices of successive blocks of rows of ``logits`` (N, V)."""
    size = max(1, _BLOCK.get(logits.device.type, _BLOCK["cuda"]) // max(1, logits.shape[1]))
    count = len(logits) if rows is None else len(rows)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count)) if rows is None else rows[start : start + size]


def _snap(alpha: float) -> float:
    return next((limit for limit in (0.0, 1.0) if abs(alpha - limit) < _NEAR_LIMIT), alpha)


def _is_number(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)
