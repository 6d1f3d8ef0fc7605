"""ScaledAdam: Adam whose steps are relative to each tensor's size, with a learned size and clipping by the median norm.

Speed: each tensor needs its own factors (size, step count), which ``torch._foreach_*`` takes as lists of numbers. So the
update runs on lists of tensors as they lie in the model. Stacking tensors of one shape, the usual way, would copy every
parameter and gradient into the stack and every parameter back. What is one number per tensor (size, step count, size
gradients' moment) stays on the host and is read from the device together, once in ``size_update_period`` steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Callable, Optional

import torch
from torch import Tensor
from torch.optim import Optimizer

from espnet_todm.errors import UserError
from espnet_todm.optim.options import check_number

# The clipping threshold is first estimated at these steps, from few norms, and is doubled there.
EARLY_CLIPPING_STEPS = (10, 20, 40)
# Up to this value, Adam's bias correction of the second moment is applied; above it, it is taken as 1.
LARGEST_BIAS = 0.99
# No size update shrinks or grows a tensor by more than this share (before momentum).
LARGEST_SCALE_STEP = 0.1


@dataclass
class _Batch:
    """The tensors of one group, device and dtype that take part in this step; all lists run in parallel."""

    parameters: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)  # the parameters, or fp32 copies of fp16 and bf16 ones
    gradients: list[Tensor] = field(default_factory=list)  # same shapes and dtype as values
    states: list[dict[str, Any]] = field(default_factory=list)
    used: Optional[list[Tensor]] = None  # with skip_zero_grad: bool, which elements have a gradient


class ScaledAdam(Optimizer):
    """Adam with steps in units of each tensor's root mean square, for any model (Zipformer, arXiv 2310.11230; icefall).

    Step k = 0, 1, 2, ... of a tensor p with gradient g, where rms(p) is its root mean square over all elements:

    1. g is scaled by min(1, threshold / N) when ``clipping_scale`` is set (see below).
    2. v = b2 v + (1 - b2) g^2; delta = -lr g / (sqrt(v / bias) + eps); bias = 1 - b2^(k+1) while below 0.99, then 1.
    3. delta is multiplied by max(rms(p), param_min_rms). rms(p) is taken at the first step and at each size update.
    4. Size update, when k mod T = T - 1 (T = ``size_update_period``), from s = sum(p g) of the last T steps:
       u = b2^T u + (1 - b2^T) mean(s^2); step = -scalar_lr_scale lr sqrt(1 - b2^(k+1)) sum(s) / (sqrt(u) + eps);
       0 where rms(p) < param_min_rms; within +-0.1; at most (param_max_rms - rms) / rms; delta = delta + p step.
    5. m = b1 m + (1 - b1) delta; p = p + m.

    A "scalar" (a tensor with one element) has learning rate scalar_lr_scale lr, no steps 3 and 4, and is kept within
    +-scalar_max after its step.

    Clipping, per parameter group: N^2 is the sum over tensors of sum((g rms(p))^2) and over scalars of
    (scalar_lr_scale g)^2. From the group's second step on, the last M = ``clipping_update_period`` norms N are kept.
    At the group's steps k = M, 2M, ..., and at 10, 20 and 40 where below M, threshold = clipping_scale * sorted[2 * (n // 4)]
    of the n norms kept, doubled at 10, 20 and 40. Before the first threshold nothing is clipped. With ``clipping_scale``
    set, switch the trainer's own clipping off (in ESPnet ``grad_clip: .inf``), or gradients are clipped twice. Gradients
    that are not finite are left to the trainer, which skips such steps in ESPnet.

    What had no gradient in a step:

    - A tensor whose ``.grad`` is None keeps its value and all its state; its k does not advance. A group's k advances
      when any of its tensors has a gradient.
    - With ``skip_zero_grad``, the same holds within tensors: an element whose gradient is exactly zero keeps its value
      and moments, and a tensor whose gradient is zero everywhere counts as having none. So the bias correction counts
      each element's own steps (one more state tensor). Size: rms(p) is that of the whole tensor; s is that of the used
      elements, as zeros add nothing; a size update moves only the elements used in its own step k. When every element
      has a gradient this equals the formulas. It costs one wait for the device in each step.

    State is per parameter, float32 for float16 and bfloat16 parameters (whose own rounding still applies to p + m).

    Args:
        params: parameters or parameter groups; no names are needed.
        lr: relative step size; 0.03 to 0.045 where Adam has about 0.001.
        betas: b1 and b2, each in [0, 1).
        clipping_scale: clip at this multiple of the median norm (recipes: 2.0); None clips nothing.
        scalar_lr_scale: factor on lr for scalars and for size updates, and on scalars' gradients in N.
        eps: added to denominators.
        param_min_rms: sizes below this count as this.
        param_max_rms: size updates do not grow tensors beyond this.
        scalar_max: bound on the absolute value of scalars.
        size_update_period: T, in steps.
        clipping_update_period: M, in steps.
        skip_zero_grad: leave elements with exactly zero gradient untouched.

    Raises:
        UserError: an option outside its range; complex parameters; sparse gradients; another optimizer's state.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.03,
        betas: tuple[float, float] = (0.9, 0.98),
        clipping_scale: Optional[float] = None,
        scalar_lr_scale: float = 0.1,
        eps: float = 1e-8,
        param_min_rms: float = 1e-5,
        param_max_rms: float = 3.0,
        scalar_max: float = 10.0,
        size_update_period: int = 4,
        clipping_update_period: int = 100,
        skip_zero_grad: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "clipping_scale": clipping_scale,
            "scalar_lr_scale": scalar_lr_scale,
            "eps": eps,
            "param_min_rms": param_min_rms,
            "param_max_rms": param_max_rms,
            "scalar_max": scalar_max,
            "size_update_period": size_update_period,
            "clipping_update_period": clipping_update_period,
            "skip_zero_grad": skip_zero_grad,
            # Clipping's state lives in the group, where state_dict() and copies find it.
            "clipping_step": 0,
            "clipping_norms": None,
            "clipping_threshold": None,
        }
        _check_options(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group with its own options. Raises UserError on a bad option or a complex parameter."""
        _check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if not parameter.is_floating_point():
                self.param_groups.pop()
                raise UserError(
                    f"scaledadam: parameter of dtype {parameter.dtype}, but only real floating point is allowed"
                )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load ``state_dict()`` of a ScaledAdam with groups of the same sizes; training goes on bit by bit as before."""
        for group in state_dict["param_groups"]:
            missing = sorted(set(self.defaults) - set(group))
            if missing:
                raise UserError(f"scaledadam: the state to load has no {missing[0]!r}, but must come from scaledadam")
        super().load_state_dict(state_dict)
        # torch casts the state to the parameters' dtype, which would round the float32 state of half-precision ones.
        keys = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        for key, parameter in zip(keys, parameters):
            if key in state_dict["state"]:
                self.state[parameter] = _copied(state_dict["state"][key], parameter.device)

    @torch.no_grad()
    def step(self, closure: Optional[Callable[[], Any]] = None) -> Any:  # type: ignore[override]
        """One update of all parameters that have a gradient. Returns the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            batches = self._batches(group)
            if batches and group["clipping_scale"] is not None:
                _clip(group, batches)
            for batch in batches:
                _update(group, batch)
        return loss

    def _batches(self, group: dict[str, Any]) -> list[_Batch]:
        """What takes part in this step, by device and dtype, as foreach kernels want it. Starts the state of new tensors."""
        batches: dict[tuple[torch.device, torch.dtype], _Batch] = {}
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None or parameter.numel() == 0:
                continue
            if gradient.is_sparse:
                raise UserError(
                    "scaledadam: a gradient is sparse, but must be dense (set sparse=False in the embedding)"
                )
            dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
            batch = batches.setdefault((parameter.device, dtype), _Batch())
            batch.parameters.append(parameter)
            batch.values.append(parameter.to(dtype))  # the parameter itself where the dtype is the same
            batch.gradients.append(gradient.to(dtype))
        for batch in batches.values():
            if group["skip_zero_grad"]:
                _drop_unused(batch)
            batch.states = [self.state[parameter] for parameter in batch.parameters]
            _start_states(group, batch)
        return [batch for batch in batches.values() if batch.parameters]


def _drop_unused(batch: _Batch) -> None:
    """Mark the elements with a gradient, and leave out the tensors that have none."""
    used = [gradient != 0 for gradient in batch.gradients]
    keep = torch.stack([mask.any() for mask in used]).tolist()
    batch.parameters = [item for item, wanted in zip(batch.parameters, keep) if wanted]
    batch.values = [item for item, wanted in zip(batch.values, keep) if wanted]
    batch.gradients = [item for item, wanted in zip(batch.gradients, keep) if wanted]
    batch.used = [item for item, wanted in zip(used, keep) if wanted]


def _start_states(group: dict[str, Any], batch: _Batch) -> None:
    new = [(value, state) for value, state in zip(batch.values, batch.states) if "step" not in state]
    sizes = _sizes([value for value, _ in new])
    for (value, state), size in zip(new, sizes):
        state["step"] = 0
        state["exp_avg"] = torch.zeros_like(value)  # m
        state["exp_avg_sq"] = torch.zeros_like(value)  # v
        if value.numel() > 1:
            state["rms"] = size
            state["scale_grads"] = []  # s since the last size update, scalars on the device
            state["scale_exp_avg_sq"] = 0.0  # u
    if group["skip_zero_grad"]:
        for value, state in zip(batch.values, batch.states):
            if "bias" not in state:  # new, or the option was switched on in a resumed training
                state["bias"] = torch.full_like(value, 1 - group["betas"][1] ** state["step"])


def _sizes(values: list[Tensor]) -> list[float]:
    """The root mean square of each tensor."""
    norms = torch.stack(torch._foreach_norm(values)).tolist() if values else []
    return [norm / math.sqrt(value.numel()) for norm, value in zip(norms, values)]


def _clip(group: dict[str, Any], batches: list[_Batch]) -> None:
    """Step 1: record the norm, renew the threshold when it is time, scale the gradients. Never waits for the device."""
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
        scale = group["clipping_scale"] * (2.0 if early else 1.0)
        group["clipping_threshold"] = kept[2 * (len(kept) // 4)] * scale
    if group["clipping_threshold"] is None:
        return
    scale = (group["clipping_threshold"].to(norm.device) / (norm + 1e-20)).clamp(max=1.0)
    for batch in batches:
        batch.gradients = _times(batch.gradients, scale.to(batch.gradients[0]))


def _model_norm(group: dict[str, Any], batches: list[_Batch]) -> Tensor:
    """N, the norm of all gradients in units of their tensors' sizes: a scalar on the first batch's device."""
    squares = []
    for batch in batches:
        norms = torch.stack(torch._foreach_norm(batch.gradients))
        units = [state.get("rms", group["scalar_lr_scale"]) for state in batch.states]
        squares.append((norms * norms.new_tensor(units)).square().sum())
    return torch.stack([square.to(squares[0]) for square in squares]).sum().sqrt()


def _times(tensors: list[Tensor], factor: Tensor) -> list[Tensor]:
    """Each tensor times one number on the device."""
    return list(torch._foreach_mul(tensors, factor))


def _update(group: dict[str, Any], batch: _Batch) -> None:
    """Steps 2 to 5 for all tensors of a batch."""
    beta1, beta2 = group["betas"]
    moments = [state["exp_avg"] for state in batch.states]
    squares = [state["exp_avg_sq"] for state in batch.states]
    _decay(moments, beta1, batch.used)
    _decay(squares, beta2, batch.used)
    torch._foreach_addcmul_(squares, batch.gradients, batch.gradients, 1 - beta2)
    _update_sizes(group, batch)
    denominators, biases = _denominators(group, batch, squares)
    # g / (sqrt(v / bias) + eps) = sqrt(bias) g / (sqrt(v) + sqrt(bias) eps): the correction costs no pass of its own.
    factors = []
    for state, bias in zip(batch.states, biases):
        unit = max(state["rms"], group["param_min_rms"]) if "rms" in state else group["scalar_lr_scale"]
        factors.append(-group["lr"] * (1 - beta1) * math.sqrt(bias) * unit)
    torch._foreach_addcdiv_(moments, batch.gradients, denominators, factors)
    steps = moments if batch.used is None else torch._foreach_mul(moments, batch.used)
    torch._foreach_add_(batch.values, steps)
    for parameter, value, state in zip(batch.parameters, batch.values, batch.states):
        state["step"] += 1
        if value.numel() == 1:
            value.clamp_(-group["scalar_max"], group["scalar_max"])
        if value is not parameter:
            parameter.copy_(value)


def _decay(tensors: list[Tensor], beta: float, used: Optional[list[Tensor]]) -> None:
    if used is None:
        torch._foreach_mul_(tensors, beta)
    else:
        torch._foreach_mul_(tensors, [torch.ones_like(t).masked_fill_(mask, beta) for t, mask in zip(tensors, used)])


def _denominators(group: dict[str, Any], batch: _Batch, squares: list[Tensor]) -> tuple[list[Tensor], list[float]]:
    """sqrt(v) + sqrt(bias) eps and bias for each tensor; with skip_zero_grad sqrt(v / bias) + eps, by element, and 1."""
    beta2, eps = group["betas"][1], group["eps"]
    if batch.used is None:
        biases = [1 - beta2 ** (state["step"] + 1) for state in batch.states]
        biases = [bias if bias < LARGEST_BIAS else 1.0 for bias in biases]
        denominators = torch._foreach_sqrt(squares)
        torch._foreach_add_(denominators, [math.sqrt(bias) * eps for bias in biases])
        return list(denominators), biases
    # The mean of ones, decayed as v is, is 1 - b2^n after an element's n-th step.
    counts = [state["bias"] for state in batch.states]
    _decay(counts, beta2, batch.used)
    for count, mask in zip(counts, batch.used):
        count.add_(mask, alpha=1 - beta2)
    corrected = [square / count.masked_fill(count >= LARGEST_BIAS, 1.0) for square, count in zip(squares, counts)]
    denominators = torch._foreach_sqrt(corrected)
    torch._foreach_add_(denominators, eps)
    return list(denominators), [1.0] * len(counts)


def _update_sizes(group: dict[str, Any], batch: _Batch) -> None:
    """Step 4: note every tensor's size gradient; where T of them are there, add p * step to the momentum."""
    due = []
    for index, (value, gradient, state) in enumerate(zip(batch.values, batch.gradients, batch.states)):
        if "rms" in state:
            state["scale_grads"].append(torch.dot(value.reshape(-1), gradient.reshape(-1)))
            if len(state["scale_grads"]) >= group["size_update_period"]:
                due.append(index)
    if not due:
        return
    values = [batch.values[index] for index in due]
    states = [batch.states[index] for index in due]
    period = group["size_update_period"]
    # One transfer from the device for all.
    norms = torch._foreach_norm(values)
    numbers = torch.stack(list(chain(norms, *(state["scale_grads"] for state in states)))).tolist()
    scales = []
    for number, (value, state) in enumerate(zip(values, states)):
        state["rms"] = numbers[number] / math.sqrt(value.numel())
        first = len(due) + number * period
        scales.append((1 - group["betas"][0]) * _scale_step(group, state, numbers[first : first + period]))
        state["scale_grads"] = []
    changes = torch._foreach_mul(values, scales)
    if batch.used is not None:
        torch._foreach_mul_(changes, [batch.used[index] for index in due])
    torch._foreach_add_([state["exp_avg"] for state in states], changes)


def _scale_step(group: dict[str, Any], state: dict[str, Any], scale_grads: list[float]) -> float:
    """The share by which a tensor's size changes, before momentum."""
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


def _copied(value: Any, device: torch.device) -> Any:
    """A deep copy of one parameter's state, with its tensors on ``device`` in their own dtype."""
    if isinstance(value, Tensor):
        return value.detach().clone().to(device)
    if isinstance(value, dict):
        return {key: _copied(item, device) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item, device) for item in value]
    return value


def _check_options(options: dict[str, Any]) -> None:
    """Raise UserError, naming the option, its value and what is allowed."""
    betas = options["betas"]
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise UserError(f"scaledadam: betas: {betas!r} is not allowed, it must be two numbers, as in [0.9, 0.98]")
    for beta in betas:
        check_number("scaledadam: betas", beta, at_least=0, below=1)
    for key in ("lr", "scalar_lr_scale"):
        check_number(f"scaledadam: {key}", options[key], at_least=0)
    for key in ("eps", "param_min_rms", "scalar_max"):
        check_number(f"scaledadam: {key}", options[key], above=0)
    check_number("scaledadam: param_max_rms", options["param_max_rms"], above=options["param_min_rms"])
    for key in ("size_update_period", "clipping_update_period"):
        check_number(f"scaledadam: {key}", options[key], at_least=1, whole=True)
    if options["clipping_scale"] is not None:
        check_number("scaledadam: clipping_scale", options["clipping_scale"], above=0)
    if not isinstance(options["skip_zero_grad"], bool):
        raise UserError(
            f"scaledadam: skip_zero_grad: {options['skip_zero_grad']!r} is not allowed, it must be true or false"
        )
