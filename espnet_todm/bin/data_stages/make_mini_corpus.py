"""Moved to egs/mini/local, beside the recipe that it is for."""

from __future__ import annotations

from collections.abc import Sequence

from espnet_todm.bin._cli import run
from espnet_todm.errors import UserError


def main(arguments: Sequence[str]) -> None:
    raise UserError("make_mini_corpus has moved; in egs/mini run: python local/make_mini_corpus.py")


if __name__ == "__main__":
    run(main)
