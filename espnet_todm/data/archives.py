"""What kaldiio may do when it reads a table of data: it runs no shell commands and unpickles nothing.

Kaldi's tables may name a command in place of a file (``cat a.wav |``, also with a place behind it: ``cat a.ark |:5[0:3]``),
and kaldiio's archives may hold Python's pickles, which run code when they are read. Data are often somebody else's. Both are
refused where kaldiio would do them, whatever led there.
"""

from __future__ import annotations

import pickle
import re
from types import SimpleNamespace
from typing import Any, NoReturn

from kaldiio import matio
from kaldiio.utils import open_like_kaldi

from espnet_todm.errors import UserError
from espnet_todm.util.files import PathLike


def refuse_code(pipes: bool = True) -> None:
    """From now on kaldiio, in this process and its forks, unpickles nothing, and with ``pipes`` runs no commands; each ends
    in a UserError."""
    matio.pickle = SimpleNamespace(load=_refuse_pickle, dump=pickle.dump)
    if pipes:
        matio.open_like_kaldi = _open_file


def refuse_pipe(scp: PathLike, name: str, place: str) -> None:
    """Raises UserError where an entry of a table is a shell command, as Kaldi allows."""
    if is_pipe(place):
        raise UserError(f"{scp}: {name} is a shell command ({place}); pipes are not run, write the audio out")


def is_pipe(place: str) -> bool:
    """Whether kaldiio would run this entry: it begins with ``|``, or nothing but a place in an archive and a range follows
    the last one. (A letter cannot be a part of these.)"""
    stripped = place.strip()
    return stripped.startswith("|") or ("|" in stripped and not re.search(r"[^\W\d_]", stripped.rpartition("|")[2]))


def _open_file(name: Any, mode: str = "r") -> Any:
    """kaldiio's opening of files, without commands."""
    if isinstance(name, str) and "|" in (name.strip()[:1], name.strip()[-1:]):
        raise UserError(f"{name}: a shell command in a table of data; pipes are not run, write the audio out")
    return open_like_kaldi(name, mode)


def _refuse_pickle(file: Any, **_: Any) -> NoReturn:
    where = getattr(file, "name", "an archive")
    raise UserError(f"{where}: holds a pickle, which could run code when it is read; write features as matrices")
