"""Commands that start in a third of the time: what ESPnet's imports do for code that is never called waits until it is.

Of the 17 seconds that ``import espnet2.tasks.asr`` took on a busy core (torch not counted), ten went into typeguard, which
parses a module's source again for each function that it is to check, three into g2p_en, which also asks the network for
data of nltk's, and two into scipy and numba. Checks and modules are the same, at their first use. Stock commands are left
as they are.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from espnet_todm.hook import WrappedLoader, WrappingFinder

# Modules that few runs need, and the functions that ESPnet imports from them by name.
LAZY_MODULES: dict[str, tuple[str, ...]] = {
    "g2p_en": (),  # one of ESPnet's tokenizers
    "scipy.signal": (),  # reverberation
    "espnet2.main_funcs.calculate_all_attentions": ("calculate_all_attentions",),  # imports speech synthesis
}


def quick_start() -> None:
    """Delay typeguard's work and LAZY_MODULES in this process, as far as they are not imported yet. Idempotent."""
    loaders = {name: functools.partial(_LazyLoader, functions=functions) for name, functions in LAZY_MODULES.items()}
    WrappingFinder({"typeguard": _DelayingLoader, **loaders}).install()


def delayed(typechecked: Any) -> Any:
    """typeguard's decorator ``typechecked``, but a plain function is made to check its arguments when it is first called.

    Not delayed: classes, options of the decorator, and functions in functions, of which typeguard needs the caller's names.
    """

    @functools.wraps(typechecked)
    def decorator(target: Any = None, **options: Any) -> Any:
        plain = inspect.isfunction(target) and not hasattr(target, "__wrapped__")
        if options or not plain or "<locals>" in target.__qualname__:
            return typechecked(target, **options)
        checked = None

        @functools.wraps(target)
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal checked
            if checked is None:
                checked = typechecked(target)
            return checked(*arguments, **keywords)

        return call

    return decorator


class _DelayingLoader(WrappedLoader):
    """Loads typeguard; its decorator then is :func:`delayed`."""

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        vars(module)["typechecked"] = delayed(module.typechecked)


class _LazyLoader(WrappedLoader):
    """Executes a module when one of its names is asked for (PEP 562), or one of ``functions`` called.

    importlib's LazyLoader also does so for ``__file__``, which ``inspect.getmodule``, and so torch, asks of every module.
    """

    def __init__(self, loader: Any, functions: Sequence[str]) -> None:
        super().__init__(loader)
        self.functions = functions

    def exec_module(self, module: ModuleType) -> None:
        for name in self.functions:
            vars(module)[name] = functools.partial(self._call, module, name)
        vars(module)["__getattr__"] = functools.partial(self._attribute, module)

    def _attribute(self, module: ModuleType, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        self._load(module)
        return getattr(module, name)

    def _call(self, module: ModuleType, name: str, *arguments: Any, **keywords: Any) -> Any:
        self._load(module)
        return vars(module)[name](*arguments, **keywords)

    def _load(self, module: ModuleType) -> None:
        lazy = vars(module).pop("__getattr__", None)  # the module's own code must not find it
        if lazy is not None:
            try:
                self.loader.exec_module(module)
            except BaseException:
                vars(module)["__getattr__"] = lazy
                raise
