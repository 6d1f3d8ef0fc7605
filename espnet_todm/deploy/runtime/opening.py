"""Which runtime opens a folder. PyTorch is imported only where it is asked for: an exported model needs none of it."""

from __future__ import annotations

from espnet_todm.deploy.forms.registry import open_onnx
from espnet_todm.deploy.runtime.base import ONNXRUNTIME, RUNTIMES, SHERPA, TORCH, Runtime
from espnet_todm.errors import UserError
from espnet_todm.util.files import PathLike


def open_runtime(kind: str, folder: PathLike, precision: str = "fp32", threads: int = 1) -> Runtime:
    """A runtime with a model in it.

    Args:
        kind: "torch" (an extracted subnet's folder), "onnxruntime" or "sherpa-onnx" (an exported one's).
        precision: "fp32", "fp16" or "int8"; torch has fp32 only.
        threads: that compute one utterance.

    Raises:
        UserError: an argument is not allowed, a package is missing, or the folder's model cannot run there.
    """
    if threads < 1:
        raise UserError(f"threads: {threads}, but at least 1 is needed")
    if kind == TORCH:
        from espnet_todm.deploy.runtime.torch import open_torch

        if precision != "fp32":
            raise UserError(f"precision: {precision!r} is not for {TORCH}; allowed: fp32")
        return open_torch(folder, threads)
    if kind == ONNXRUNTIME:
        return open_onnx(folder, precision, threads)
    if kind == SHERPA:
        from espnet_todm.deploy.runtime.sherpa import SherpaRuntime

        return SherpaRuntime(folder, precision, threads)
    raise UserError(f"runtime: {kind!r} is unknown; allowed: {', '.join(RUNTIMES)}")
