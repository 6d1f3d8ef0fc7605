"""Try a training configuration: build it, run one step on random speech, print what its sizes cost. Nothing is written.

Any other option is the training command's.

Example: python -m espnet_todm.bin.dry_run --config conf/train_todm.yaml --vocabulary 500
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from espnet_todm import hook, register
from espnet_todm.bin._cli import Parser, run
from espnet_todm.util.acoustics import MEL_BINS

hook.install(pipes=False)

# criterion, its unit's factor, title
COLUMNS = (
    ("params", 1e-6, "params (M)"),
    ("flops", 1e-9, "GFLOPs per s of speech"),
    ("latency", 1e3, "encoder's ms per s of speech"),
)


def main(arguments: Sequence[str]) -> None:
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="training configuration")
    parser.add_argument("--vocabulary", type=int, default=500, help="tokens in all, the special ones included")
    parser.add_argument(
        "--input_size",
        type=int,
        help=f"features of a frame; 0 for audio (default: 0 if the configuration names a front end, else {MEL_BINS})",
    )
    parser.add_argument("--utterances", type=int, default=2, help="in the batch")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each utterance")
    given, training = parser.parse_known_args(arguments)
    logging.getLogger().setLevel(logging.WARNING)
    register()
    import torch

    from espnet_todm.bench.dry_run import dry_run
    from espnet_todm.espnet.config_inheritance import read_config
    from espnet_todm.espnet.options import parse_training
    from espnet_todm.util.markdown import markdown_table

    torch.set_num_threads(1)
    stand_ins = ["--token_list", "-", "--output_dir", "-"]  # required, but nothing is read there or written
    if given.input_size is None:
        named = read_config(given.config)
        given.input_size = 0 if named.get("frontend") else named.get("input_size") or MEL_BINS
    size = ["--input_size", str(given.input_size)] if given.input_size else []
    options = parse_training(["--config", given.config, *stand_ins, *size, *training])
    done = dry_run(options, given.vocabulary, given.utterances, given.seconds)
    whole = next(iter(done.costs.values()))
    columns = [column for column in COLUMNS if whole.by(column[0])]  # latency, where it has been measured
    rows = []
    for name, cost in done.costs.items():
        cells = ((f"{cost.by(c) * unit:.3f}", f"{cost.by(c) / whole.by(c):.1%}") for c, unit, _ in columns)
        rows.append([name, *(cell for pair in cells for cell in pair)])
    titles = [title for _, _, column in columns for title in (column, "of full")]
    print(markdown_table(["size", *titles], rows), end="")
    print(f"{given.config}: one step of {given.utterances} x {given.seconds:g} s in {done.seconds:.1f} s")
    print(f"optim: {options.optim}, scheduler: {options.scheduler}, lr: {done.rates[0]:.7g}, then {done.rates[1]:.7g}")
    print(f"loss: {done.loss:.4g}, finite; gradient finite")


if __name__ == "__main__":
    run(main)
