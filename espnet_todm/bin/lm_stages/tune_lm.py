"""Stage 13: tune the scales of a language model on the validation set, for each size of an experiment.

Example: python -m espnet_todm.bin.tune_lm --experiment exp/supernet --data dump/fbank --set dev --lm data/lm/3gram/lm.arpa
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from espnet_todm import register
from espnet_todm.bin._cli import Parser, run
from espnet_todm.bin.decode import add_search_arguments, parse_with_settings, search_options
from espnet_todm.util.launch import add_launcher_arguments, launch, launcher_arguments


def main(arguments: Sequence[str]) -> None:
    """Write lm_scales/<size>/{prior,scales}.json and say what they bring."""
    parser = Parser(description=__doc__)
    parser.add_argument("--experiment", required=True, help="folder with subnets/<size>; lm_scales/<size> goes there")
    parser.add_argument("--data", required=True, help="folder with <set>/feats.scp or <set>/wav.scp")
    parser.add_argument("--references", help="folder with <set>/text (default: that of --data)")
    parser.add_argument("--set", required=True, help="set to tune on")
    parser.add_argument("--utterances", type=int, default=500, help="how many of the set at most (default 500)")
    parser.add_argument("--sizes", nargs="*", default=[], help="sizes to tune for; default all that were extracted")
    add_search_arguments(parser, default="prefix")
    add_launcher_arguments(parser)
    parsed = parse_with_settings(parser, arguments)

    register()
    from espnet_todm.decode.features import input_table
    from espnet_todm.decode.scales import FOLDER, NAMES, Tuning, tune_scales
    from espnet_todm.deploy.folder import subnet_folders
    from espnet_todm.util.checks import check_number

    check_number("utterances", parsed.utterances, at_least=1, whole=True)
    search = search_options(parsed)
    table = str(input_table(Path(parsed.data) / parsed.set))
    text = str(Path(parsed.references or parsed.data) / parsed.set / "text")
    work = [
        Tuning(str(model), table, text, str(Path(parsed.experiment) / FOLDER / model.name), parsed.utterances, search)
        for model in subnet_folders(parsed.experiment, parsed.sizes)
    ]
    for job, found in zip(work, launch(tune_scales, work, name="tuning", **launcher_arguments(parsed))):
        rates = (100 * found[key] / found["words"] for key in ("errors_without", "errors"))
        print(
            "{}: {:.1f} -> {:.1f}% word errors on {} utterances, with".format(
                Path(job.output).name, *rates, found["utterances"]
            ),
            *(f"{name} {found[name]:g}" for name in NAMES),
        )


if __name__ == "__main__":
    run(main)
