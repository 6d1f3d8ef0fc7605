"""Which components each size of an experiment keeps: heat maps, shares by kind and depth, a short text.

Example: python -m espnet_todm.bin.analyze_selection --experiment exp/train_ortho --output exp/train_ortho/selection.md
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from espnet_todm.bin._cli import Parser, run


def main(arguments: Sequence[str]) -> None:
    """Write the page and its pictures beside it, and print it."""
    parser = Parser(description=__doc__)
    parser.add_argument("--experiment", required=True, help="folder with extracted sizes, e.g. exp/train_ortho")
    parser.add_argument("--output", required=True, help="the page (Markdown); pictures go to the folder beside it")
    options = parser.parse_args(arguments)

    from espnet_todm.report.selection_page import selection_section
    from espnet_todm.util.files import write_text

    output = Path(options.output)
    text = selection_section(options.experiment, output.with_suffix(""), output.parent)
    write_text(output, text)
    print(text)


if __name__ == "__main__":
    run(main)
