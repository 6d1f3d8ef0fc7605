"""Files of checkpoints: written whole, and neither damaged nor able to run code when they are read.

A checkpoint of torch is a zip archive with a CRC-32 of each of its records. torch writes these sums and does not look at
them when it reads; here they are looked at, so that files of stock ESPnet and of older releases are checked as well, and no
second file has to be kept, moved or removed beside a checkpoint. A CRC-32 finds every flipped bit.

ESPnet unpickles without restrictions. What it is about to read is first read here, with an unpickler that builds tensors,
numbers and containers only: a file that passes holds nothing that ESPnet's own reading could run.
"""

from __future__ import annotations

import datetime
import importlib
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch

from espnet_todm.errors import UserError, one_line
from espnet_todm.trainers.switch import convert_older
from espnet_todm.util.files import PathLike, atomic_path

_DIRECTORY = 0x10  # attribute by which torch takes a record for a folder, and reads nothing
_NUMBERS = tuple(np.dtype(name) for name in ("bool", "float16", "float32", "float64", "int32", "int64"))
# What ESPnet's checkpoint.pth holds beyond tensors and containers: numpy's numbers and durations in the reporter's record.
# numpy 2 has other names for what files of numpy 1 hold.
_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_ALLOWED: dict[str, Any] = {
    **dict.fromkeys(_SCALARS, np.float64(0).__reduce__()[0]),
    "numpy.dtype": np.dtype,
    **{f"{type(one).__module__}.{type(one).__qualname__}": type(one) for one in _NUMBERS},
    "_codecs.encode": importlib.import_module("_codecs").encode,  # pickle's form of bytes
    "datetime.timedelta": datetime.timedelta,
}
# torch's restricted unpickler could be led to run code before 2.6, and takes names other than a class's own since then or a
# little later. Ours, which does the work until 2.7, needs to be told what tensors and containers are made of.
_TORCH_RESTRICTS = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 7)
_TENSORS = (
    *("collections.OrderedDict", "collections.Counter", "collections.defaultdict", "torch.Size", "torch.device"),
    *("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"),
)


def read_checkpoint(path: PathLike) -> Any:
    """What a checkpoint holds, on the CPU.

    Raises UserError when it is missing, damaged, or holds what is neither tensors nor numbers.
    """
    return _read(Path(path), mapped=False)


def check_checkpoint(path: PathLike) -> Any:
    """As :func:`read_checkpoint`, for a file that ESPnet will read next; its tensors are not read into memory."""
    return _read(Path(path), mapped=True)


def check_weights_file(path: PathLike) -> None:
    """As :func:`check_checkpoint`, for weights that ESPnet will load into a model.

    Raises UserError also for checkpoint.pth, of which ESPnet would take nothing and say nothing.
    """
    if is_training_state(check_checkpoint(path)):
        raise UserError(
            f"{path}: is the state of a training; give the weights of an epoch, such as valid.loss.best.pth"
        )


def is_training_state(states: Any) -> bool:
    """Whether this is what ESPnet writes to checkpoint.pth: the model's weights with all that a run goes on from."""
    return isinstance(states, dict) and "model" in states and "optimizers" in states


def save_checkpoint(obj: Any, path: PathLike, *args: Any, **kwargs: Any) -> None:
    """``torch.save``, but whole or absent, and a full disk is an OSError and not torch's RuntimeError."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        _plain_save(obj, file, *args, **kwargs)


@contextmanager
def guarded_checkpoints() -> Iterator[None]:
    """Within this context ``torch.save`` to a path is all or nothing, and ``torch.load`` of a path is checked first.

    ESPnet writes checkpoint.pth in place, so a run killed at that moment could never be resumed (its issue 5407), and it has
    no hook around its calls of either, in its loop over epochs, its resuming and its averaging.
    """
    with mock.patch.object(torch, "save", _guarded_save), mock.patch.object(torch, "load", _guarded_load):
        yield


def _guarded_save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
    (save_checkpoint if isinstance(f, (str, Path)) else _plain_save)(obj, f, *args, **kwargs)


def _guarded_load(f: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(f, (str, Path)):
        check_checkpoint(f)
    states = _plain_load(f, *args, **kwargs)
    if isinstance(states, dict):  # ESPnet's averages may be over models of an older release and of this one
        convert_older(states, "subnet_trainer.")
    return states


_plain_save, _plain_load = torch.save, torch.load


def _read(path: Path, mapped: bool) -> Any:
    if not path.is_file():
        dangling = f" (a link to {path.readlink()})" if path.is_symlink() else ""
        raise UserError(f"{path}: no such checkpoint{dangling}")
    zipped = _check_sums(path)
    try:
        if _TORCH_RESTRICTS:
            allowed = [(value, name) for name, value in _ALLOWED.items()]
            with torch.serialization.safe_globals(allowed):  # type: ignore[arg-type]
                return _plain_load(path, map_location="cpu", weights_only=True, mmap=mapped and zipped)
        # torch 1.13 takes its own pickle whatever it is given.
        with mock.patch.object(torch.serialization, "pickle", _RESTRICTED_PICKLE):
            return _plain_load(path, map_location="cpu", pickle_module=_RESTRICTED_PICKLE)
    except Exception as error:
        raise _refusal(path, error) from None


def _check_sums(path: Path) -> bool:
    """Raises UserError when a record of the archive is not what its sum says. Returns whether the file is an archive:
    torch's format before 1.6 is none and has no sums."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
            bad = bad or next((one.filename for one in archive.infolist() if one.external_attr & _DIRECTORY), None)
    except Exception as error:  # whatever zipfile meets in a damaged file
        raise UserError(f"{path}: not a readable checkpoint ({one_line(error)}); {_ADVICE}") from None
    if bad is not None:
        raise UserError(f"{path}: damaged: {bad} in it is not what was written; {_ADVICE}")
    return True


_ADVICE = "take another checkpoint, or remove it"


def _refusal(path: Path, error: Exception) -> UserError:
    if isinstance(error, MemoryError):
        return UserError(f"{path}: not enough memory to read it")
    found = re.search(r"GLOBAL (\S+)|class (\S+) (?:is|was) not allowed", str(error))
    if found is None:
        return UserError(f"{path}: not a readable checkpoint ({one_line(error)}); {_ADVICE}")
    name = found[1] or found[2]
    return UserError(
        f"{path}: holds {name}, which is no tensor, number or container, and could run code when it is read; save the"
        " weights of a file that you trust anew, as a plain dictionary (docs/security.md)"
    )


class _RestrictedUnpickler(pickle.Unpickler):
    """Looks up what is allowed, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _ALLOWED:
            return _ALLOWED[full]
        if full in _TENSORS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"class {full} is not allowed")


# What torch takes for the module pickle.
_RESTRICTED_PICKLE: Any = SimpleNamespace(
    __name__="restricted_pickle",
    Unpickler=_RestrictedUnpickler,
    UnpicklingError=pickle.UnpicklingError,
    load=lambda file, **options: _RestrictedUnpickler(file, **options).load(),
)
