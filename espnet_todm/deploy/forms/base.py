"""Base class of export formats: the graphs of a model, the runtimes for them, and the models they are compared with.

The process that times a model imports this module and must not import PyTorch. So imports that need PyTorch are local.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Optional

from espnet_todm.deploy.forms.stock import Stock
from espnet_todm.deploy.onnx.folder import FOLDER
from espnet_todm.deploy.runtime.base import StepRuntime
from espnet_todm.deploy.runtime.onnx import OnnxRuntime
from espnet_todm.deploy.runtime.recognizer import OfflineRecognizer, Recognizer
from espnet_todm.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

Named = tuple[str, StepRuntime]  # the name for reports, and a runtime


@dataclass(frozen=True)
class Graph:
    """One ONNX file to write: its name without suffix, the module, and example inputs for tracing.

    ``inputs`` and ``outputs``: name -> dynamic axes {axis: name}. ``metadata`` is for the runtime.
    """

    name: str
    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: Mapping[str, Mapping[int, str]]
    outputs: Mapping[str, Mapping[int, str]]
    metadata: Mapping[str, Any]

    @property
    def features(self) -> bool:
        """Whether the inputs are features (N, T, F) and their lengths (N,), and nothing else."""
        return len(self.example) == 2 and self.example[1].dim() == 1 and self.example[0].is_floating_point()


@dataclass(frozen=True)
class Export:
    """A model's graphs, and the runtime's names of its tokens in the order of ids. ``card``: additional card entries."""

    graphs: Sequence[Graph]
    tokens: Sequence[str]
    card: Mapping[str, Any] = field(default_factory=dict)


class Form(ABC):
    """One export format.

    Class attributes:
        name: of this class.
        format: value of ``bin.export --format``, and the subfolder of a size for the files. Classes for different kinds of
            models may share it.
        about: description of that folder, for lists of files.
        parts: names of the graphs. The first takes the features.
        runtime: class that runs the graphs in onnxruntime.
        stock: sherpa-onnx's recognizer for the graphs.
        trained_name: name in reports of the PyTorch model that the export must equal.
        in_chunks: whether the model takes speech in chunks; such a model is not timed in PyTorch.
    """

    name: ClassVar[str]
    format: ClassVar[str] = FOLDER
    about: ClassVar[str] = "the same model for onnxruntime and sherpa-onnx"
    parts: ClassVar[tuple[str, ...]] = ("model",)
    runtime: ClassVar[type[OnnxRuntime]]
    stock: ClassVar[Stock]
    trained_name: ClassVar[str] = "PyTorch"
    in_chunks: ClassVar[bool] = False

    def fits(self, model: Any) -> bool:
        """Whether the format is for this kind of model. :meth:`graphs` checks all other requirements."""
        return True

    def recognises(self, metadata: Mapping[str, str]) -> bool:
        """Whether a folder with these ``parts`` has this format. ``metadata``: of the first graph."""
        return True

    @abstractmethod
    def graphs(self, model: Any, config: Mapping[str, Any], chunk: Optional[Sequence[int]]) -> list[Graph]:
        """The graphs of a model, in the order of ``parts``.

        ``chunk``: encoder frames of a chunk and of its left context from the user, for streaming formats.

        Raises UserError for a model that cannot be written in this format.
        """

    def card(self, graphs: Sequence[Graph]) -> dict[str, Any]:
        """Entries that the folder's card has in addition to the subnet's card."""
        return {}

    def notes(self, card: Mapping[str, Any]) -> Sequence[str]:
        """Markdown sections for the README of a packed size. ``card``: of this format's folder, empty without one."""
        return ()

    def recognizer(self, arguments: Mapping[str, Any], **details: Any) -> Recognizer:
        """A sherpa-onnx recognizer with the model loaded.

        arguments: for sherpa-onnx: the file of each part, ``tokens``, ``num_threads`` and ``feature_dim``.
        details: the ``details`` of the folder's :class:`OnnxRuntime`.
        """
        return OfflineRecognizer(self.stock.recognizer(arguments))

    def programs(self, model: OnnxRuntime) -> dict[str, str]:
        """Name -> source of programs that transcribe a file with an exported model, beside whose files they stand."""
        files = {part: graph.path.name for part, graph in model.graphs.items()}
        return self.stock.programs(files, model.mel_bins, model.details)

    def export(self, model: Any, config: Mapping[str, Any], chunk: Optional[Sequence[int]] = None) -> Export:
        """Graphs, tokens and card entries of a model. Raises UserError as :meth:`graphs`, and for invalid tokens."""
        from espnet_todm.deploy.onnx.tokens import runtime_tokens

        if model.blank_id != 0:
            raise UserError(f"token_list: the blank is token {model.blank_id}; runtimes ask for token 0")
        tokens = runtime_tokens(model.token_list, model.blank_id, config["token_type"])
        graphs = self.graphs(model, config, chunk)
        return Export(graphs, tokens, self.card(graphs))

    def trained(self, model: Any, config: Mapping[str, Any], exported: OnnxRuntime, threads: int) -> StepRuntime:
        """The runtime that an exported model must equal: the PyTorch model as in training."""
        from espnet_todm.deploy.runtime.torch import torch_runtime

        return torch_runtime(model, config, threads)

    def equal(self, model: Any, config: Mapping[str, Any], exported: OnnxRuntime, threads: int) -> Sequence[Named]:
        """Other runtimes of the PyTorch model that must equal :meth:`trained`."""
        return ()

    def told(self, model: Any, config: Mapping[str, Any], exported: OnnxRuntime, threads: int) -> Sequence[Named]:
        """Runtimes whose word error rates are reported for comparison, without a limit."""
        return ()
