"""Packages that only some commands need: imported when they are, and missed in words."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from espnet_todm.errors import UserError


def needed(name: str, extra: str = "deploy") -> Any:
    """The package of this name. Raises UserError, with what to install, when it is not there.

    extra: of this package's, which brings it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0].replace("_", "-")
        raise UserError(f"{package} is not installed ({error}); pip install 'espnet_todm[{extra}]'") from None


def package_version(name: str) -> str:
    """The version of an installed package, "" where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
