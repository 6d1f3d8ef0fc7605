"""A mock of a GPU: tensors that say ``cuda:0``, compute on the CPU, and count what a GPU would have to do.

Inside :class:`MockDevice`, ``model.to(DEVICE)`` and ``torch.zeros(3, device=DEVICE)`` make mock tensors. They behave as
on a GPU in three respects:

- An operation on a mock tensor and a real CPU tensor of one dimension or more raises :class:`MixedDevices`.
- Each operation that computes is a launch. Views, allocations and metadata are not. A ``torch._foreach_*`` operation
  counts as the launches that CUDA's kernel needs for that many tensors.
- An operation for which the host has to wait is a synchronisation: reading values (``item``, ``tolist``, ``bool``,
  ``cpu``), results whose shape depends on values (``nonzero``, boolean indices), and copies from memory of the host that
  is not pinned.

Both are counted by the line of this repository that caused them. Numbers are those of the dispatcher: a composite CUDA
kernel may launch more, and may wait inside. CUDA's CTC kernel copies lists of lengths to the device itself, for example.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

if not hasattr(torch._C, "_current_graph_task_id"):
    pytest.skip("torch is too old for the mock device", allow_module_level=True)

DEVICE = torch.device("cuda", 0)
ROOT = Path(__file__).parents[1]

# Tensors in one launch of CUDA's foreach kernels, by the number of lists that the kernel reads and writes.
TENSORS_PER_LAUNCH = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
NO_LAUNCH = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "detach_", "alias", "lift_fresh"),
    *("_unsafe_view", "_reshape_alias", "is_same_size", "_local_scalar_dense", "set_", "resize_"),
}  # fmt: skip
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_dim", "_unique2", "unique_consecutive"}
WAITS_IN_MASKS = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
SAME_DEVICE = {"cat", "stack", "_foreach_norm"}  # these take no real scalars beside mock tensors
READS = {"tolist", "numpy", "__array__"}


class MixedDevices(RuntimeError):
    """An operation on tensors of the mock device and of the CPU."""


class MockTensor(torch.Tensor):
    """A tensor of the mock device. ``data_on_cpu`` has its values."""

    data_on_cpu: Tensor
    counts: Counts

    @staticmethod
    def __new__(cls, on_cpu: Tensor, counts: Counts) -> MockTensor:
        made: MockTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            on_cpu.shape,
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            requires_grad=on_cpu.requires_grad,
        )
        made.data_on_cpu, made.counts = on_cpu.detach(), counts
        return made

    device = DEVICE  # type: ignore[assignment]
    is_cuda, is_cpu = True, False  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied: Tensor = MockTensor(self.data_on_cpu.clone(), self.counts)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"MockTensor({self.data_on_cpu})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, flat = function._schema.name.rpartition("::")[2], tree_flatten((args, kwargs))[0]
        counts = next(value.counts for value in flat if isinstance(value, MockTensor))
        counts.check(name, flat)
        counts.note(function, name, args, flat)
        result = function(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs))
        if name.endswith("_") and not name.endswith("__"):
            return None if name.startswith("_foreach_") else args[0]
        if "out" in kwargs:
            return kwargs["out"]
        return tree_map(lambda value: MockTensor(value, counts) if isinstance(value, Tensor) else value, result)


class Counts:
    """Launches and synchronisations by source line, ``file:line`` from the root of the repository."""

    def __init__(self) -> None:
        self.launches: Counter[str] = Counter()
        self.syncs: Counter[str] = Counter()
        self.names: Counter[str] = Counter()  # launches by operation

    @property
    def total(self) -> tuple[int, int]:
        """Launches and synchronisations."""
        return sum(self.launches.values()), sum(self.syncs.values())

    def clear(self) -> None:
        for counter in (self.launches, self.syncs, self.names):
            counter.clear()

    def update(self, other: Counts) -> None:
        """Add what another one has counted."""
        for ours, theirs in zip((self.launches, self.syncs, self.names), (other.launches, other.syncs, other.names)):
            ours.update(theirs)

    def wait(self, what: str, times: int = 1) -> None:
        self.syncs[f"{_place()} {what}"] += times

    def check(self, name: str, flat: Iterable[Any]) -> None:
        """Raises MixedDevices where a GPU would."""
        for value in flat:
            if isinstance(value, Tensor) and not isinstance(value, MockTensor):
                index = name in WAITS_IN_MASKS and value.dtype in (torch.int64, torch.int32, torch.bool)
                if (value.dim() or name in SAME_DEVICE) and name not in ("copy_", "_to_copy") and not index:
                    raise MixedDevices(f"{name} at {_place()} has a CPU tensor {tuple(value.shape)} beside a mock one")

    def note(self, function: Any, name: str, args: Any, flat: list[Any]) -> None:
        if name in WAITS:
            self.wait(name)
        elif name in WAITS_IN_MASKS:
            indices = [value for value in args[1] if isinstance(value, Tensor)]
            if any(value.dtype == torch.bool for value in indices):
                self.wait("boolean index")
            if any(not isinstance(value, MockTensor) for value in indices):
                self.wait("index on the CPU")
        elif name == "_ctc_loss" and isinstance(args[2], Tensor):
            self.wait("lengths of ctc_loss", 2)
        elif name == "repeat_interleave" and function._overloadname == "Tensor":
            self.wait(name)
        elif name == "copy_" and not (isinstance(args[0], MockTensor) and isinstance(args[1], MockTensor)):
            self.wait("copy from or to the host")
        if name not in NO_LAUNCH and not _is_view(function):
            launches = _launches(name, args)
            self.launches[_place()] += launches
            self.names[name] += launches


class MockDevice(TorchFunctionMode):
    """Makes the mock device usable inside a ``with`` block, and counts what happens on it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()
        self.backward = _Backward(self.counts)
        fork = torch.random.fork_rng  # random numbers of the mock device are those of the CPU
        self.forks = mock.patch("torch.random.fork_rng", lambda *_: fork([]))

    def __enter__(self) -> MockDevice:
        # Module.to would put the values into the old parameters, which stay real tensors.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        super().__enter__()
        self.backward.__enter__()
        self.forks.start()
        return self

    def __exit__(self, *error: Any) -> None:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        self.forks.stop()
        self.backward.__exit__(*error)
        super().__exit__(*error)

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if name in READS and isinstance(args[0], MockTensor):
            self.counts.wait(name)
            return getattr(args[0].data_on_cpu, name)(*args[1:], **kwargs)
        if name in ("to", "cpu", "cuda") and args and isinstance(args[0], Tensor):
            return self._moved(name, args[0], args[1:], kwargs)
        if name in ("new_tensor", "new") and isinstance(args[0], MockTensor):
            self.counts.wait(name)
            return MockTensor(getattr(args[0].data_on_cpu, name)(*args[1:], **kwargs), self.counts)
        if name == "prod" and isinstance(args[0], MockTensor) and args[0].requires_grad and torch.is_grad_enabled():
            self.counts.wait("prod, whose backward looks for zeros")  # not for a subclass of tensors, such as this one
        if kwargs.get("device") is None:
            return function(*args, **kwargs)
        there = _is_mock(kwargs["device"])
        if name.endswith("_like") or name.startswith("new_"):
            if there != isinstance(args[0], MockTensor):
                raise NotImplementedError(f"{name} of a mock tensor on {kwargs['device']}")
            return function(*args, **{**kwargs, "device": None})
        if not there:
            return function(*args, **kwargs)
        if name in ("tensor", "as_tensor"):
            self.counts.wait(name)
        elif name not in NO_LAUNCH:
            self.counts.launches[_place()] += 1
            self.counts.names[name] += 1
        made = function(*args, **{**kwargs, "device": "cpu"})
        return MockTensor(made, self.counts) if type(made) is Tensor else made

    def _moved(self, name: str, tensor: Tensor, rest: Sequence[Any], options: dict[str, Any]) -> Tensor:
        """``Tensor.to`` in all its forms, ``cpu`` and ``cuda``."""
        device = {"cpu": torch.device("cpu"), "cuda": DEVICE}.get(name) or options.pop("device", None)
        flags = [value for value in rest if isinstance(value, bool)]
        for value in rest if name == "to" else ():
            if isinstance(value, Tensor):
                device, options["dtype"] = value.device, value.dtype
            elif isinstance(value, torch.dtype):
                options["dtype"] = value
            elif isinstance(value, (str, torch.device)):
                device = value
        waits = not (options.pop("non_blocking", False) or flags[:1] == [True])
        if device is not None and _is_mock(device) != isinstance(tensor, MockTensor):
            self.counts.wait("cpu" if isinstance(tensor, MockTensor) else "upload", int(waits))
            if isinstance(tensor, MockTensor):
                tensor = tensor.data_on_cpu.clone()
            else:
                tensor = MockTensor(tensor.detach().clone(), self.counts)
        options = {key: value for key, value in options.items() if value is not None}
        moved: Tensor = tensor.to(**options) if options else tensor
        return moved


class _Backward(TorchDispatchMode):
    """Tensors that autograd's own backward formulas make are mock ones, too."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        in_backward = torch._C._current_graph_task_id() != -1
        if not in_backward or any(isinstance(value, Tensor) for value in tree_flatten((args, kwargs))[0]):
            return result
        return MockTensor(result, self.counts) if type(result) is Tensor else result


def on_device(value: Any) -> Any:
    """A tensor, or a dataclass or mapping with tensors, on the mock device. To be called inside :class:`MockDevice`."""
    if isinstance(value, Tensor):
        return value.to(DEVICE)
    if isinstance(value, Mapping):
        return {key: on_device(item) for key, item in value.items()}
    fields = {key: item.to(DEVICE) for key, item in vars(value).items() if isinstance(item, Tensor)}
    return type(value)(**{**vars(value), **fields})


def on_cpu(value: Any) -> Any:
    """The values of a mock tensor; anything else as it is."""
    return _on_cpu(value)


def _on_cpu(value: Any) -> Any:
    return value.data_on_cpu if isinstance(value, MockTensor) else value


def _is_mock(device: Any) -> bool:
    return torch.device(device).type == DEVICE.type


def _is_view(function: Any) -> bool:
    """Whether an operation returns a view of an argument and changes nothing."""
    returns = [value.alias_info for value in function._schema.returns]
    return any(alias is not None and not alias.is_write for alias in returns)


def _launches(name: str, args: Any) -> int:
    if not name.startswith("_foreach_"):
        return 1
    lists = sum(isinstance(value, (list, tuple)) and isinstance(value[0], Tensor) for value in args)
    lists += not name.endswith("_")  # the results
    return -(-len(args[0]) // TENSORS_PER_LAUNCH[min(lists, 5)])


def _place() -> str:
    """The innermost line of the package, else of ESPnet, that is running."""
    frame: Optional[Any] = sys._getframe(2)
    espnet = ""
    while frame is not None:
        path = frame.f_code.co_filename
        if "/espnet_todm/" in path and path.startswith(str(ROOT)):
            return f"{Path(path).relative_to(ROOT / 'espnet_todm')}:{frame.f_lineno}" + (
                f" ({espnet})" if espnet else ""
            )
        if not espnet and "/espnet" in path and "site-packages" in path:
            espnet = f"{path.rpartition('site-packages/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return espnet or "elsewhere"


Function = Callable[..., Any]
