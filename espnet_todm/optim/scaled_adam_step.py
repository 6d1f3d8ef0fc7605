"""The arithmetic of one ScaledAdam step (the numbered parts in ScaledAdam's docstring), over lists of tensors.

Speed: every tensor needs its own factors (size, step count), and ``torch._foreach_*`` accepts a list of numbers, one
per tensor. The update therefore runs on the tensors in place. icefall stacks tensors of equal shape instead. That needs
fewer kernel calls but copies all parameters and gradients into stacks and the parameters back. On one CPU thread, the
copies alone took 7 ms for a Conformer of 7M, a third of this whole step. Values with one number per tensor are kept on
the host. Size gradients and sizes are read from the device together, once in ``size_update_period`` steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Optional

import torch
from torch import Tensor

# At these steps there are only few norms for the clipping threshold, so it is doubled.
EARLY_CLIPPING_STEPS = (10, 20, 40)
# Adam's bias correction of the second moment applies below this value; from there on it is taken as 1.
LARGEST_BIAS = 0.99
# Largest relative change of a tensor by a size update, before momentum.
LARGEST_SCALE_STEP = 0.1


@dataclass
class Batch:
    """The tensors of one group, device and dtype in a step; the lists are parallel."""

    partial: bool  # only the elements with non-zero gradient take part, and counts of steps are per element
    parameters: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)  # the parameters, or fp32 copies of fp16 and bf16 ones
    gradients: list[Tensor] = field(default_factory=list)  # of the values' shapes and dtype
    states: list[dict[str, Any]] = field(default_factory=list)


def start_states(group: dict[str, Any], batch: Batch) -> None:
    """Initialise the state of new tensors, and the step counts per element of tensors that are used in part for the
    first time.
    """
    new = [(value, state) for value, state in zip(batch.values, batch.states) if "step" not in state]
    norms = torch.stack(list(torch._foreach_norm([value for value, _ in new]))).tolist() if new else []
    for (value, state), norm in zip(new, norms):
        state["step"] = 0  # k
        state["exp_avg"] = torch.zeros_like(value)  # m
        state["exp_avg_sq"] = torch.zeros_like(value)  # v
        if value.numel() > 1:
            state["rms"] = norm / math.sqrt(value.numel())
            state["scale_grads"] = []  # s of the steps since the last size update: scalar tensors
            state["scale_exp_avg_sq"] = 0.0  # u
    if batch.partial:
        for value, state in zip(batch.values, batch.states):
            if "bias" not in state:
                state["bias"] = torch.full_like(value, 1 - group["betas"][1] ** state["step"])


def clip(group: dict[str, Any], batches: list[Batch]) -> None:
    """Part 1: record the norm, update the threshold if it is due, scale the gradients. Never synchronises with the
    device.
    """
    step, period = group["clipping_step"], group["clipping_update_period"]
    group["clipping_step"] = step + 1
    if step == 0:
        return
    norm = _model_norm(group, batches)
    if group["clipping_norms"] is None:
        group["clipping_norms"] = torch.zeros(period, dtype=norm.dtype, device=norm.device)
    norms = group["clipping_norms"] = group["clipping_norms"].to(norm.device)
    norms[step % period] = norm
    early = step in EARLY_CLIPPING_STEPS and step < period
    if early or step % period == 0:
        kept = (norms[1 : step + 1] if early else norms).sort()[0]
        group["clipping_threshold"] = kept[2 * (len(kept) // 4)] * (group["clipping_scale"] * (2.0 if early else 1.0))
    if group["clipping_threshold"] is None:
        return
    scale = (group["clipping_threshold"].to(norm.device) / (norm + 1e-20)).clamp(max=1.0)
    for batch in batches:
        batch.gradients = list(torch._foreach_mul(batch.gradients, scale.to(batch.gradients[0])))


def _model_norm(group: dict[str, Any], batches: list[Batch]) -> Tensor:
    """N, the norm of all gradients in units of their tensors' sizes: a scalar tensor on the first batch's device."""
    squares = []
    for batch in batches:
        norms = torch._foreach_norm(batch.gradients)
        units = [state.get("rms", group["scalar_lr_scale"]) for state in batch.states]
        squares.append(_products(list(norms), units).square().sum())
    return torch.stack([square.to(squares[0]) for square in squares]).sum().sqrt()


def _products(numbers: list[Tensor], factors: list[float]) -> Tensor:
    """Products of scalar tensors and numbers of the host, (n,)."""
    if numbers[0].device.type == "cpu":
        return torch.stack(numbers) * numbers[0].new_tensor(factors)
    return torch.stack(
        torch._foreach_mul(numbers, factors)
    )  # without a copy of the factors, for which the host would wait


def _dots(values: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    """sum(value * gradient) of each pair, scalar tensors. On a GPU, tensors of one size are reduced together."""
    if values[0].device.type == "cpu":
        return [torch.dot(value.reshape(-1), gradient.reshape(-1)) for value, gradient in zip(values, gradients)]
    by_size: dict[int, list[int]] = {}
    for index, value in enumerate(values):
        by_size.setdefault(value.numel(), []).append(index)
    products = torch._foreach_mul(values, gradients)
    found: dict[int, Tensor] = {}
    for same in by_size.values():
        rows = torch.stack([products[index].reshape(-1) for index in same])
        found.update(zip(same, rows.sum(1).unbind(0)))
    return [found[index] for index in range(len(values))]


def update(group: dict[str, Any], batch: Batch) -> None:
    """Parts 2 to 5 for all tensors of a batch."""
    beta1, beta2 = group["betas"]
    moments = [state["exp_avg"] for state in batch.states]
    squares = [state["exp_avg_sq"] for state in batch.states]
    used = [gradient != 0 for gradient in batch.gradients] if batch.partial else None
    _decay(moments, beta1, used)
    _decay(squares, beta2, used)
    torch._foreach_addcmul_(squares, batch.gradients, batch.gradients, 1 - beta2)
    _update_sizes(group, batch, used)
    denominators, biases = _denominators(group, batch, squares, used)
    factors = []
    for state, bias in zip(batch.states, biases):
        unit = max(state["rms"], group["param_min_rms"]) if "rms" in state else group["scalar_lr_scale"]
        factors.append(-group["lr"] * (1 - beta1) * math.sqrt(bias) * unit)
    torch._foreach_addcdiv_(moments, batch.gradients, denominators, factors)
    torch._foreach_add_(batch.values, moments if used is None else torch._foreach_mul(moments, used))
    for parameter, value, state in zip(batch.parameters, batch.values, batch.states):
        state["step"] += 1
        if value.numel() == 1:
            value.clamp_(-group["scalar_max"], group["scalar_max"])
        if value is not parameter:
            parameter.copy_(value)


def _decay(tensors: list[Tensor], beta: float, used: Optional[list[Tensor]]) -> None:
    """Multiply by ``beta`` in place, where ``used`` (or everywhere)."""
    if used is None:
        torch._foreach_mul_(tensors, beta)
    else:
        torch._foreach_mul_(tensors, [torch.ones_like(t).masked_fill_(mask, beta) for t, mask in zip(tensors, used)])


def _denominators(
    group: dict[str, Any], batch: Batch, squares: list[Tensor], used: Optional[list[Tensor]]
) -> tuple[list[Tensor], list[float]]:
    """Divisors of the gradients, and for each tensor the bias whose factor sqrt(bias) the divisor does not include yet.

    g / (sqrt(v / bias) + eps) = sqrt(bias) g / (sqrt(v) + sqrt(bias) eps), so the correction needs no pass over the
    tensor. If elements count their own steps, the divisor on the left is returned, and the bias is 1.
    """
    beta2, eps = group["betas"][1], group["eps"]
    if used is None:
        biases = [1 - beta2 ** (state["step"] + 1) for state in batch.states]
        biases = [bias if bias < LARGEST_BIAS else 1.0 for bias in biases]
        denominators = list(torch._foreach_sqrt(squares))
        torch._foreach_add_(denominators, [math.sqrt(bias) * eps for bias in biases])
        return denominators, biases
    # An average of ones with the decay of v: 1 - b2^n after an element's n-th step.
    counts = [state["bias"] for state in batch.states]
    _decay(counts, beta2, used)
    for count, mask in zip(counts, used):
        count.add_(mask, alpha=1 - beta2)
    # An element that was never used has v = 0 and count = 0; its gradient is 0, but its divisor must not be 0 / 0.
    corrections = [count.masked_fill((count >= LARGEST_BIAS) | (count == 0), 1.0) for count in counts]
    denominators = list(torch._foreach_sqrt(torch._foreach_div(squares, corrections)))
    torch._foreach_add_(denominators, eps)
    return denominators, [1.0] * len(counts)


def _update_sizes(group: dict[str, Any], batch: Batch, used: Optional[list[Tensor]]) -> None:
    """Part 4: record each tensor's size gradient; after T of them, add p * step to the momentum."""
    period = group["size_update_period"]
    sized = [index for index, state in enumerate(batch.states) if "rms" in state]
    if not sized:
        return
    dots = _dots([batch.values[index] for index in sized], [batch.gradients[index] for index in sized])
    for index, dot in zip(sized, dots):
        batch.states[index]["scale_grads"].append(dot)
    due = [index for index in sized if len(batch.states[index]["scale_grads"]) >= period]
    if not due:
        return
    values = [batch.values[index] for index in due]
    states = [batch.states[index] for index in due]
    # All numbers come from the device in one transfer: first the norms, then T size gradients for each tensor.
    norms = torch._foreach_norm(values)
    numbers = torch.stack(list(chain(norms, *(state["scale_grads"][-period:] for state in states)))).tolist()
    scales = []
    for position, (value, state) in enumerate(zip(values, states)):
        state["rms"] = numbers[position] / math.sqrt(value.numel())
        first = len(due) + position * period
        scales.append((1 - group["betas"][0]) * _scale_step(group, state, numbers[first : first + period]))
        state["scale_grads"] = []
    changes = list(torch._foreach_mul(values, scales))
    if used is not None:
        torch._foreach_mul_(changes, [used[index] for index in due])
    torch._foreach_add_([state["exp_avg"] for state in states], changes)


def _scale_step(group: dict[str, Any], state: dict[str, Any], scale_grads: list[float]) -> float:
    """The relative change of a tensor's size, before momentum, from its T size gradients."""
    period, rms = len(scale_grads), state["rms"]
    beta2 = group["betas"][1] ** period
    mean_square = sum(gradient * gradient for gradient in scale_grads) / period
    state["scale_exp_avg_sq"] = beta2 * state["scale_exp_avg_sq"] + (1 - beta2) * mean_square
    if rms < group["param_min_rms"]:
        return 0.0
    bias = 1 - beta2 ** ((state["step"] + 1) // period)
    denominator = math.sqrt(state["scale_exp_avg_sq"]) + group["eps"]
    step = -group["scalar_lr_scale"] * group["lr"] * math.sqrt(bias) * sum(scale_grads) / denominator
    step = min(max(step, -LARGEST_SCALE_STEP), LARGEST_SCALE_STEP)
    return min(step, (group["param_max_rms"] - rms) / rms)
