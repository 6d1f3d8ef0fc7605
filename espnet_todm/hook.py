"""An import hook: when ESPnet's ASR task is imported, this package registers itself with it.

``python -m espnet_todm.bin.hook on`` makes it permanent for an environment, so that stock commands work unchanged.
"""

from __future__ import annotations

import importlib.machinery
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType, TracebackType
from typing import Any, Optional

TASK = "espnet2.tasks.asr"
pipes_allowed = True  # until one of this package's own commands changes it


@contextmanager
def short_waits(seconds: float = 5.0) -> Iterator[None]:
    """Let no connection to the network wait for longer. Packages that ESPnet imports (g2p_en) look for data of nltk's there,
    and where a network answers nothing, the import would never end."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


class WrappedLoader(Loader):
    """A module's own loader inside another, whose subclasses say how it is executed."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Optional[ModuleType]:
        module: Optional[ModuleType] = self.loader.create_module(spec)
        return module


class WrappingFinder(MetaPathFinder):
    """Finds nothing itself; wraps loaders. ``loaders``: name of a module -> makes its loader, given the module's own."""

    def __init__(self, loaders: Mapping[str, Callable[[Any], Loader]]) -> None:
        self.loaders = loaders

    def find_spec(
        self, name: str, path: Optional[Sequence[str]], target: Optional[ModuleType] = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        if name not in self.loaders:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = self.loaders[name](spec.loader)
        return spec

    def install(self) -> None:
        """Wrap from now on. Does nothing if there is a finder for the same modules."""
        if not any(
            isinstance(finder, WrappingFinder) and finder.loaders.keys() == self.loaders.keys()
            for finder in sys.meta_path
        ):
            sys.meta_path.insert(0, self)


class _RegisteringLoader(WrappedLoader):
    """Loads a module with its own loader, then registers."""

    def exec_module(self, module: ModuleType) -> None:
        with short_waits():
            self.loader.exec_module(module)
        from espnet_todm import register

        register()
        _tell_user_errors_in_one_line()


def _tell_user_errors_in_one_line() -> None:
    """Print a UserError in one line in stock commands, which do not catch it, as in our own commands."""
    from espnet_todm.errors import UserError

    before = sys.excepthook

    def tell(kind: type[BaseException], error: BaseException, trace: Optional[TracebackType]) -> None:
        if isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr)
        else:
            before(kind, error, trace)

    sys.excepthook = tell


def install(pipes: bool = True) -> None:
    """Register immediately if ESPnet's ASR task is imported already, otherwise when it is imported. Idempotent and
    cheap.

    pipes: whether ESPnet may run shell commands in data tables, as Kaldi allows. Stock commands may; ours may not.
    """
    global pipes_allowed
    pipes_allowed = pipes_allowed and pipes
    if TASK in sys.modules:
        from espnet_todm import register

        register()
    else:
        WrappingFinder({TASK: _RegisteringLoader}).install()
