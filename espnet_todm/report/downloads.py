"""Files of a size that can be taken to a device as they are, with their sizes, as a page links them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from espnet_todm.card import WEIGHTS
from espnet_todm.deploy.forms.registry import of_format
from espnet_todm.deploy.onnx.folder import FOLDER, PRECISIONS
from espnet_todm.util.files import PathLike
from espnet_todm.util.markdown import link

ONNX = {f"ONNX {precision}": suffix for precision, suffix in PRECISIONS.items()}


class File(NamedTuple):
    """A link: what the page shows, and where it leads, relative to the page."""

    name: str
    href: str


class Download(NamedTuple):
    """Files that are used together, and how many bytes they have together."""

    files: list[File]
    bytes: int

    @property
    def megabytes(self) -> str:
        """Of 1,000,000 bytes, with three digits."""
        return f"{self.bytes / 1e6:.3g} MB" if self.bytes < 1e9 else f"{self.bytes / 1e6:.0f} MB"


def downloads(subnet: PathLike, home: PathLike) -> dict[str, Download]:
    """Kind -> what there is of it in an extracted folder; kinds that were not made are left out.

    home: the page's folder.
    """
    folder = Path(subnet)
    graphs = sorted({part for form in of_format(FOLDER) for part in form.parts})
    found = {"extracted": _download([folder / WEIGHTS], home)}
    for kind, suffix in ONNX.items():
        found[kind] = _download([folder / FOLDER / f"{graph}{suffix}" for graph in graphs], home)
    found["packed"] = _download(sorted(folder.glob("*.zip")), home)
    return {kind: download for kind, download in found.items() if download.files}


def kinds(of_sizes: Sequence[dict[str, Download]]) -> list[str]:
    """All kinds that any size has, in their order."""
    order = ["extracted", *ONNX, "packed"]
    return [kind for kind in order if any(kind in size for size in of_sizes)]


def _download(paths: Sequence[Path], home: PathLike) -> Download:
    there = [path for path in paths if path.is_file()]
    files = [File(path.name, quote(link(path, home))) for path in there]
    return Download(files, sum(path.stat().st_size for path in there))
