"""What an export form is: the graphs that a model becomes, what runs them, and what they are compared with.

A process in which a model is timed imports this and must not import PyTorch: what needs it is imported where it is used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Optional

from espnet_todm.deploy.onnx.folder import FOLDER
from espnet_todm.deploy.runtime.base import StepRuntime
from espnet_todm.deploy.runtime.onnx import OnnxRuntime
from espnet_todm.deploy.runtime.recognizer import Recognizer
from espnet_todm.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

Named = tuple[str, StepRuntime]  # a runtime, and what reports call it


@dataclass(frozen=True)
class Graph:
    """One file to be written: its name without suffix, the module, inputs to record it on, and what goes in and out.

    ``inputs`` and ``outputs``: name -> names of the dimensions that vary, by number. ``metadata`` is for the runtime.
    """

    name: str
    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: Mapping[str, Mapping[int, str]]
    outputs: Mapping[str, Mapping[int, str]]
    metadata: Mapping[str, Any]

    @property
    def features(self) -> bool:
        """Whether it takes features (N, T, F) and their lengths (N,), and nothing else."""
        return len(self.example) == 2 and self.example[1].dim() == 1 and self.example[0].is_floating_point()


@dataclass(frozen=True)
class Export:
    """A model's graphs, and its tokens by their ids as the runtime names them. ``card``: what its card says more."""

    graphs: Sequence[Graph]
    tokens: Sequence[str]
    card: Mapping[str, Any] = field(default_factory=dict)


class Form(ABC):
    """One export form.

    Class attributes:
        name: its own.
        format: what ``bin.export --format`` calls it, and the subfolder of a size that its files go to. Forms that are for
            different models share one.
        about: what that folder is, for lists of files.
        parts: names of its graphs. The first takes the features.
        runtime: what runs them in onnxruntime.
        trained_name: what reports call the PyTorch model that must be equalled.
        in_chunks: whether it takes speech in chunks; such a model is not timed in PyTorch.
    """

    name: ClassVar[str]
    format: ClassVar[str] = FOLDER
    about: ClassVar[str] = "the same model for onnxruntime and sherpa-onnx"
    parts: ClassVar[tuple[str, ...]] = ("model",)
    runtime: ClassVar[type[OnnxRuntime]]
    trained_name: ClassVar[str] = "PyTorch"
    in_chunks: ClassVar[bool] = False

    def fits(self, model: Any) -> bool:
        """Whether it is meant for a model of this kind; what else it asks for, :meth:`graphs` says."""
        return True

    def recognises(self, metadata: Mapping[str, str]) -> bool:
        """Whether a folder with its ``parts`` is of this form. ``metadata``: of the first graph."""
        return True

    @abstractmethod
    def graphs(self, model: Any, config: Mapping[str, Any], chunk: Optional[Sequence[int]]) -> list[Graph]:
        """The graphs of a model, in the order of ``parts``.

        ``chunk``: encoder frames of a chunk and of its left context, as the user gave them, for forms in chunks.

        Raises UserError for a model that has no such form.
        """

    def card(self, graphs: Sequence[Graph]) -> dict[str, Any]:
        """What the card of the folder says more than the subnet's."""
        return {}

    def notes(self, card: Mapping[str, Any]) -> Sequence[str]:
        """Sections, in Markdown, for the README of a packed size. ``card``: of the folder of this format, empty where the
        size has none."""
        return ()

    @abstractmethod
    def recognizer(self, arguments: Mapping[str, Any], **details: Any) -> Recognizer:
        """sherpa-onnx with a model in it.

        arguments: sherpa-onnx's: the file of each part, ``tokens``, ``num_threads`` and ``feature_dim``.
        details: those of the folder's :class:`OnnxRuntime`.
        """

    def export(self, model: Any, config: Mapping[str, Any], chunk: Optional[Sequence[int]] = None) -> Export:
        """All that is written of a model. Raises UserError as :meth:`graphs`, and for tokens that cannot be written."""
        from espnet_todm.deploy.onnx.tokens import runtime_tokens

        if model.blank_id != 0:
            raise UserError(f"token_list: the blank is token {model.blank_id}; runtimes ask for token 0")
        tokens = runtime_tokens(model.token_list, model.blank_id, config["token_type"])
        graphs = self.graphs(model, config, chunk)
        return Export(graphs, tokens, self.card(graphs))

    def trained(self, model: Any, config: Mapping[str, Any], exported: OnnxRuntime, threads: int) -> StepRuntime:
        """What an exported model must equal: the PyTorch model as training had it."""
        from espnet_todm.deploy.runtime.torch import torch_runtime

        return torch_runtime(model, config, threads)

    def equal(self, model: Any, config: Mapping[str, Any], exported: OnnxRuntime, threads: int) -> Sequence[Named]:
        """Other runtimes of the PyTorch model that must equal :meth:`trained`."""
        return ()

    def told(self, model: Any, config: Mapping[str, Any], exported: OnnxRuntime, threads: int) -> Sequence[Named]:
        """Runtimes whose word error rate stands beside, whatever it is."""
        return ()
