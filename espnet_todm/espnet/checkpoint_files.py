"""Checkpoint files: atomic writes, and checks for damage and for code before a file is read.

A checkpoint of torch is a zip archive with a CRC-32 of each record. torch writes the CRCs, but does not verify them when it
reads. This module verifies them. It works for files of stock ESPnet and of older releases too, and needs no second file
beside a checkpoint. A CRC-32 detects every single flipped bit.

ESPnet unpickles without restrictions. This module first reads each file with a restricted unpickler, which builds only
tensors, numbers and containers. A file that passes has nothing that ESPnet's unpickling could execute.
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
from espnet_todm.models.weight_average import published
from espnet_todm.trainers.switch import convert_older
from espnet_todm.util.files import PathLike, atomic_path

_DIRECTORY = 0x10  # attribute that makes torch treat a record as a folder, without content
_NUMBERS = tuple(np.dtype(name) for name in ("bool", "float16", "float32", "float64", "int32", "int64"))
# Other types in ESPnet's checkpoint.pth than tensors and containers: the reporter's numpy numbers and durations.
# numpy 2 has other names for the types in files of numpy 1.
_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_ALLOWED: dict[str, Any] = {
    **dict.fromkeys(_SCALARS, np.float64(0).__reduce__()[0]),
    "numpy.dtype": np.dtype,
    **{f"{type(one).__module__}.{type(one).__qualname__}": type(one) for one in _NUMBERS},
    "_codecs.encode": importlib.import_module("_codecs").encode,  # pickle's form of bytes
    "datetime.timedelta": datetime.timedelta,
}
# Before 2.6, torch's restricted unpickler had a hole that could run code; since about then it accepts names that differ from
# a class's own. Before 2.7 this module's unpickler is used. It needs the names that tensors and containers consist of.
_TORCH_RESTRICTS = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 7)
_TENSORS = (
    *("collections.OrderedDict", "collections.Counter", "collections.defaultdict", "torch.Size", "torch.device"),
    *("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"),
)


def read_checkpoint(path: PathLike) -> Any:
    """Read a checkpoint onto the CPU.

    Raises UserError if it is missing, damaged, or has other content than tensors, numbers and containers.
    """
    return _read(Path(path), mapped=False)


def check_checkpoint(path: PathLike) -> Any:
    """As :func:`read_checkpoint`, for a file that ESPnet reads next. Tensors are memory-mapped where torch can."""
    return _read(Path(path), mapped=True)


def check_weights_file(path: PathLike) -> None:
    """As :func:`check_checkpoint`, for weights that ESPnet loads into a model.

    Also raises UserError for checkpoint.pth, from which ESPnet would silently load nothing.
    """
    if is_training_state(check_checkpoint(path)):
        raise UserError(
            f"{path}: is the state of a training; give the weights of an epoch, such as valid.loss.best.pth"
        )


def is_training_state(states: Any) -> bool:
    """Whether ``states`` is the content of ESPnet's checkpoint.pth: the weights and the state for resuming."""
    return isinstance(states, dict) and "model" in states and "optimizers" in states


def save_checkpoint(obj: Any, path: PathLike, *args: Any, **kwargs: Any) -> None:
    """``torch.save`` as an atomic write. A full disk gives an OSError instead of torch's RuntimeError."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        _plain_save(obj, file, *args, **kwargs)


@contextmanager
def guarded_checkpoints() -> Iterator[None]:
    """In this context ``torch.save`` to a path is atomic, and ``torch.load`` of a path checks the file first. The state of a
    model that has averaged weights is saved with these.

    ESPnet writes checkpoint.pth in place, so a run that is killed meanwhile cannot be resumed (its issue 5407). ESPnet has
    no hook around its calls of the two functions in its loop over epochs, in resuming and in averaging.
    """
    with mock.patch.object(torch, "save", _guarded_save), mock.patch.object(torch, "load", _guarded_load):
        yield


def _guarded_save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
    (save_checkpoint if isinstance(f, (str, Path)) else _plain_save)(published(obj), f, *args, **kwargs)


def _guarded_load(f: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(f, (str, Path)):
        check_checkpoint(f)
    states = _plain_load(f, *args, **kwargs)
    if isinstance(states, dict):  # ESPnet may average models of an older release and of this one
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
        # torch 1.13 uses its own pickle, whatever pickle_module is.
        with mock.patch.object(torch.serialization, "pickle", _RESTRICTED_PICKLE):
            return _plain_load(path, map_location="cpu", pickle_module=_RESTRICTED_PICKLE)
    except Exception as error:
        raise _refusal(path, error) from None


def _check_sums(path: Path) -> bool:
    """Raises UserError if a record of the archive does not match its CRC. Returns whether the file is an archive: torch's
    format before 1.6 is not, and has no CRCs."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
            bad = bad or next((one.filename for one in archive.infolist() if one.external_attr & _DIRECTORY), None)
    except Exception as error:  # zipfile raises many kinds of errors for damaged files
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
    """Finds only the allowed classes and functions."""

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _ALLOWED:
            return _ALLOWED[full]
        if full in _TENSORS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"class {full} is not allowed")


# Passed to torch in place of the module pickle.
_RESTRICTED_PICKLE: Any = SimpleNamespace(
    __name__="restricted_pickle",
    Unpickler=_RestrictedUnpickler,
    UnpicklingError=pickle.UnpicklingError,
    load=lambda file, **options: _RestrictedUnpickler(file, **options).load(),
)
