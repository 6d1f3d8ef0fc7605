"""Archives of a Shar folder, read at any place."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

from lhotse.serialization import decode_json_line, deserialize_item
from lhotse.shar.utils import fill_shar_placeholder

from espnet_todm.errors import UserError


class _Member(NamedTuple):
    name: str
    begin: int
    size: int


class Archive:
    """A tar file of pairs: an utterance's data, and its description.

    Only the headers are read when it is opened. Raises UserError if it is no such file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            with tarfile.open(path, "r:") as tar:
                self.members = [_Member(one.name, one.offset_data, one.size) for one in tar]
        except tarfile.TarError as error:
            raise UserError(f"{path}: damaged, or no uncompressed tar file ({error}); write it again") from None
        self.file = open(path, "rb")  # noqa: SIM115  # until the archive is forgotten

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.file.close()

    def read(self, place: int, name: str) -> Any:
        """The description of utterance ``name``, the ``place``-th, with its data.

        Raises UserError if another utterance, or none, is at this place.
        """
        if 2 * place + 1 >= len(self.members):
            raise UserError(f"{self.path}: has {len(self.members) // 2} utterances, its cuts have more; write it again")
        data, description = self.members[2 * place : 2 * place + 2]
        found = Path(data.name)
        if str(found.with_suffix("")) != name:
            raise UserError(
                f"{self.path}: {name} is expected at place {place}, but {data.name} is there; write it again"
            )
        if found.suffix == ".nodata":
            raise UserError(f"{self.path}: holds no data of {name}")
        manifest = deserialize_item(decode_json_line(self._bytes(description).decode()))
        fill_shar_placeholder(manifest=manifest, data=self._bytes(data), tarpath=found)
        return manifest

    def _bytes(self, member: _Member) -> bytes:
        content = os.pread(self.file.fileno(), member.size, member.begin)  # forked workers share the file's position
        if len(content) < member.size:
            raise UserError(f"{self.path}: cut off; write it again")
        return content
