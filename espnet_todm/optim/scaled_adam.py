"""ScaledAdam: Adam with steps relative to each tensor's size, learned sizes, and clipping by the median gradient norm."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any, Callable, Optional

import torch
from torch import Tensor
from torch.optim import Optimizer

from espnet_todm.errors import UserError
from espnet_todm.optim.scaled_adam_step import Batch, clip, start_states, update
from espnet_todm.util.checks import check_number


class ScaledAdam(Optimizer):
    """Adam with steps in units of each tensor's root mean square, for any model (Zipformer, arXiv 2310.11230; icefall).

    Step k = 0, 1, 2, ... of a tensor p with gradient g, where rms(p) is its root mean square over all elements:

    1. g is scaled by min(1, threshold / (N + 1e-20)) when ``clipping_scale`` is set (see below).
    2. v = b2 v + (1 - b2) g^2; delta = -lr g / (sqrt(v / bias) + eps); bias = 1 - b2^(k+1) while below 0.99, then 1.
    3. delta is multiplied by max(rms(p), param_min_rms). rms(p) is computed at the first step and at each size update.
    4. Size update, when k mod T = T - 1 (T = ``size_update_period``), from s = sum(p g) of each of the last T steps:
       u = b2^T u + (1 - b2^T) mean(s^2); step = -scalar_lr_scale lr sqrt(1 - b2^(k+1)) sum(s) / (sqrt(u) + eps);
       0 where rms(p) < param_min_rms; within +-0.1; at most (param_max_rms - rms) / rms; delta = delta + p step.
    5. m = b1 m + (1 - b1) delta; p = p + m.

    A "scalar" (a tensor with one element) has the learning rate scalar_lr_scale lr and no parts 3 and 4, and is clamped
    to +-scalar_max after its step. There is no weight decay.

    Clipping works per parameter group: N^2 is the sum over tensors of sum((g rms(p))^2) and over scalars of
    (scalar_lr_scale g)^2. From the group's second step on, the last M = ``clipping_update_period`` norms N are kept. At
    the group's steps k = M, 2M, ..., and at 10, 20 and 40 where these are below M, the threshold becomes clipping_scale
    times sorted[2 floor(n / 4)] of the n kept norms, and twice that at 10, 20 and 40. Before the first threshold
    nothing is clipped. With ``clipping_scale`` set, switch off the trainer's own clipping, or gradients are clipped
    twice (ESPnet: ``grad_clip: .inf``). The optimizer does not handle gradients that are not finite; ESPnet's trainer
    skips such steps.

    Tensors and elements without a gradient in a step:

    - A tensor whose ``.grad`` is None keeps its value and all its state: its k does not advance. A group's k advances
      when any of its tensors has a gradient.
    - With ``skip_zero_grad`` this also applies inside tensors. A tensor whose gradient is zero everywhere counts as
      having none. Otherwise an element whose gradient is exactly zero keeps its value, m and v, and the bias correction
      counts the steps of each element (one more tensor of state, from the first step in which only a part was used).
      The size is still that of the tensor: rms(p) is over all elements, s is the sum over the used ones
      (zeros add nothing), k and u advance with every step in which any element was used, and a size update changes the
      elements used in that step. A tensor whose elements all have gradients follows the formulas, bit by bit. The
      option costs one synchronisation with the device per step.

    State is kept per parameter, in float32 for float16 and bfloat16 parameters (p + m is still rounded to their dtype).

    Args:
        params: parameters or parameter groups; no names are needed.
        lr: relative step size; 0.03 to 0.045 where Adam has about 0.001.
        betas: b1 and b2, each in [0, 1).
        clipping_scale: clip at this multiple of the median norm (recipes: 2.0); None clips nothing.
        scalar_lr_scale: factor on lr for scalars and for size updates, and on the gradients of scalars in N.
        eps: added to denominators.
        param_min_rms: lower bound on rms(p) in part 3.
        param_max_rms: size updates do not let tensors grow beyond this.
        scalar_max: bound on the absolute value of scalars.
        size_update_period: T, in steps.
        clipping_update_period: M, in steps.
        skip_zero_grad: do not change elements whose gradient is exactly zero.

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
            # The state of clipping is stored in the group, so that state_dict() and copies include it.
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
                raise UserError(f"scaledadam: parameter of {parameter.dtype}, but only real floating point is allowed")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load ``state_dict()`` of a ScaledAdam with groups of the same sizes; training then continues bit by bit."""
        for group in state_dict["param_groups"]:
            missing = sorted(set(self.defaults) - set(group))
            if missing:
                raise UserError(f"scaledadam: the state to load has no {missing[0]!r}; only ScaledAdam's is allowed")
        super().load_state_dict(state_dict)
        # torch casts the state to the parameters' dtype, which would round the float32 state of half-precision ones.
        keys = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        for key, parameter in zip(keys, parameters):
            if key in state_dict["state"]:
                self.state[parameter] = _copied(state_dict["state"][key], parameter.device)

    @torch.no_grad()
    def step(self, closure: Optional[Callable[[], Any]] = None) -> Any:
        """One update of all parameters that have a gradient. Returns the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            batches = self._batches(group)
            if batches and group["clipping_scale"] is not None:
                clip(group, batches)
            for batch in batches:
                update(group, batch)
        return loss

    def _batches(self, group: dict[str, Any]) -> list[Batch]:
        """The tensors of this step, by device, dtype and kind of use. Initialises the state of new tensors."""
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None and parameter.numel()]
        if any(parameter.grad.is_sparse for parameter in parameters):
            raise UserError("scaledadam: a sparse gradient is not allowed; use dense ones (sparse=False in embeddings)")
        used = _used_elements(parameters) if group["skip_zero_grad"] else [p.numel() for p in parameters]
        batches: dict[tuple[torch.device, torch.dtype, bool], Batch] = {}
        for parameter, elements in zip(parameters, used):
            if elements == 0:
                continue
            state = self.state[parameter]
            partial = group["skip_zero_grad"] and (elements < parameter.numel() or "bias" in state)
            dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
            batch = batches.setdefault((parameter.device, dtype, partial), Batch(partial))
            batch.parameters.append(parameter)
            batch.values.append(parameter.to(dtype))  # the parameter itself where it has this dtype
            batch.gradients.append(parameter.grad.to(dtype))
            batch.states.append(state)
        for batch in batches.values():
            start_states(group, batch)
        return list(batches.values())


def _used_elements(parameters: list[Tensor]) -> list[int]:
    """Number of non-zero elements of each gradient. Synchronises once with each device."""
    counts: dict[int, int] = {}
    for device in {parameter.device for parameter in parameters}:
        there = [index for index, parameter in enumerate(parameters) if parameter.device == device]
        found = torch.stack([torch.count_nonzero(parameters[index].grad) for index in there])  # type: ignore[arg-type]
        counts.update(zip(there, found.tolist()))
    return [counts[index] for index in range(len(parameters))]


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
    skip = options["skip_zero_grad"]
    if not isinstance(skip, bool):
        raise UserError(f"scaledadam: skip_zero_grad: {skip!r} is not allowed, it must be true or false")
