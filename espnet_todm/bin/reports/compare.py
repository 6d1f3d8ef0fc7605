"""Train, extract, decode and score several methods with equal updates, and write one table of methods x sizes.

What is done already is skipped; run it again after an interruption and it goes on. Several may run beside each other: each
takes the next training that no other works at. Options after -- go to the recipe.

Example: python -m espnet_todm.bin.compare --plan conf/compare.yaml --label mini --output COMPARISON.md
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from espnet_todm.bin._cli import Parser, run
from espnet_todm.errors import UserError


def main(arguments: Sequence[str]) -> None:
    """Run the plan and print the report."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--plan",
        required=True,
        help="YAML with base, methods, alone, seeds and lengths (see report/comparison/plan.py)",
    )
    parser.add_argument(
        "--recipe", default="./run.sh", help="the recipe in this folder, its data stages done (default: %(default)s)"
    )
    parser.add_argument(
        "--folder", default="compare", help="experiments go to exp/FOLDER/METHOD (default: %(default)s)"
    )
    parser.add_argument("--label", required=True, help="what the data are")
    parser.add_argument("--output", required=True, help="the report (Markdown); pictures go to the folder beside it")
    parser.add_argument(
        "--results",
        help="folder for small files with the results of each training; those of other machines count as done",
    )
    parser.add_argument(
        "--only", nargs="+", help="methods to run and show, by name, with or without the seed (default: all)"
    )
    parser.add_argument(
        "--report_only", action="store_true", help="train nothing: report what is done, with blank cells for the rest"
    )
    parser.add_argument("options", nargs="*", help="-- and options of the recipe")
    options = parser.parse_args(arguments)

    folder = Path(options.recipe).parent.resolve()  # of the link, where run.sh is one
    if folder != Path.cwd().resolve():
        raise UserError(f"--recipe: run this command in {folder}: experiments name their files relative to it")
    if not Path(options.recipe).is_file():
        raise UserError(f"--recipe: {options.recipe}: no such script; run this command in the folder of a recipe")

    from espnet_todm.report.comparison.page import write_comparison
    from espnet_todm.report.comparison.plan import choose, read_plan
    from espnet_todm.report.comparison.runs import Runs

    methods = read_plan(options.plan)
    chosen = choose(methods, options.only)
    runs = Runs(methods, options.recipe, options.folder, options.options, options.results)
    failure = None
    if not options.report_only:
        try:
            runs.run(chosen)
        except UserError as error:  # what is done is reported nevertheless
            failure = error
    done = runs.done(chosen)
    if done or failure is None:
        print(write_comparison(chosen, done, options.output, options.label, options.plan))
    if failure is not None:
        raise failure


if __name__ == "__main__":
    run(main)
