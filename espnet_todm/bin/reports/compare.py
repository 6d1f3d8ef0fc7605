"""Train, extract, decode and score several methods with equal updates, and write one table of methods x sizes.

Example: python -m espnet_todm.bin.compare --plan conf/compare.yaml --label mini --output COMPARISON.md
What is done already is skipped; run it again after an interruption and it goes on. Options after -- go to the recipe.
"""

from __future__ import annotations

from collections.abc import Sequence

from espnet_todm.bin._cli import Parser, run


def main(arguments: Sequence[str]) -> None:
    """Run the plan and print the table."""
    parser = Parser(description=__doc__)
    parser.add_argument("--plan", required=True, help="YAML with base, methods and alone (see report/plan.py)")
    parser.add_argument("--recipe", default="./run.sh", help="the recipe, its data stages done (default: %(default)s)")
    parser.add_argument(
        "--folder", default="compare", help="experiments go to exp/FOLDER/METHOD (default: %(default)s)"
    )
    parser.add_argument("--label", required=True, help="what the data are")
    parser.add_argument("--output", required=True, help="the report (Markdown); pictures go to the folder beside it")
    parser.add_argument("--only", nargs="+", help="names of the methods to run and show (default: all)")
    parser.add_argument("options", nargs="*", help="-- and options of the recipe")
    options = parser.parse_args(arguments)

    from espnet_todm.report.comparison import write_comparison
    from espnet_todm.report.plan import read_plan, train_and_score
    from espnet_todm.util.checks import check_choice

    methods = read_plan(options.plan)
    for name in options.only or ():
        check_choice("--only", name, [method.name for method in methods])
    chosen = [method for method in methods if not options.only or method.name in options.only]
    done = [(method, train_and_score(method, options.recipe, options.folder, options.options)) for method in chosen]
    print(write_comparison(done, options.output, options.label, options.plan))


if __name__ == "__main__":
    run(main)
