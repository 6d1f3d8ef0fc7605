"""ESPnet's asr_inference with this package registered; --subnet decodes one subnet of a supernet.

Example: python -m espnet_todm.bin.asr_inference --subnet small --asr_train_config exp/supernet/config.yaml \\
    --asr_model_file exp/supernet/valid.loss.ave.pth --output_dir exp/supernet/decode_small ...
All other options are ESPnet's.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_todm import hook, register
from espnet_todm.bin._cli import run
from espnet_todm.errors import UserError
from espnet_todm.util.optional import needed

hook.install(pipes=False)

LOGS = False  # ESPnet sets them up


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--subnet")
    parser.add_argument("--asr_train_config")
    parser.add_argument("--output_dir")
    parser.add_argument("--model_tag")
    parser.add_argument("-h", "--help", action="store_true")
    ours, rest = parser.parse_known_args(list(arguments))
    if ours.help:
        _help()
        return
    if ours.model_tag is not None:
        needed("espnet_model_zoo", "zoo")
    if ours.subnet is not None:
        ours.asr_train_config = str(_config_with_subnet(ours.asr_train_config, ours.subnet, ours.output_dir))
    for name in ("asr_train_config", "output_dir", "model_tag"):
        if getattr(ours, name) is not None:
            rest += [f"--{name}", getattr(ours, name)]

    register()
    from espnet2.bin.asr_inference import main as inference
    from espnet2.tasks.lm import LMTask

    from espnet_todm.data.archives import refuse_code
    from espnet_todm.espnet.registry import check_model_files

    refuse_code()
    check_model_files(LMTask)
    inference(rest)


def _help() -> None:
    """ESPnet's options and ours."""
    from espnet2.bin.asr_inference import get_parser

    parser = get_parser()
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    group = parser.add_argument_group("Supernet")
    group.add_argument(
        "--subnet", help="size, or file of a card: the subnet of the supernet that is run (default: full)"
    )
    parser.print_help()


def _config_with_subnet(config: str, subnet: str, output_dir: str) -> Path:
    """A copy of the training config whose encoder runs one subnet: beside the results, since it says what was decoded."""
    import yaml

    from espnet_todm.espnet.load import read_config
    from espnet_todm.util.files import write_text

    if config is None or output_dir is None:
        raise UserError("--subnet needs --asr_train_config (the supernet's) and --output_dir")
    conf = read_config(config)
    conf["encoder_conf"] = {**conf["encoder_conf"], "subnet": subnet}
    path = Path(output_dir) / "config_of_subnet.yaml"
    write_text(path, yaml.safe_dump(conf, sort_keys=False, allow_unicode=True))
    return path


if __name__ == "__main__":
    run(main, logs=LOGS)
