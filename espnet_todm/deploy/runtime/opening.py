"""Open a folder in a runtime. PyTorch is imported only for the runtime "torch"; exported models do not need it."""

from __future__ import annotations

from espnet_todm.deploy.forms.registry import open_onnx
from espnet_todm.deploy.runtime.base import ONNXRUNTIME, RUNTIMES, SHERPA, TORCH, Runtime
from espnet_todm.errors import UserError
from espnet_todm.util.files import PathLike


def open_runtime(kind: str, folder: PathLike, precision: str = "fp32", threads: int = 1) -> Runtime:
    """Load a model into a runtime.

    Args:
        kind: "torch" (an extracted subnet's folder), "onnxruntime" or "sherpa-onnx" (an exported one's).
        precision: "fp32", "fp16" or "int8"; torch has fp32 only.
        threads: number of threads for one utterance.

    Raises:
        UserError: an argument is not allowed, a package is missing, or the runtime cannot run the folder's model.
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
