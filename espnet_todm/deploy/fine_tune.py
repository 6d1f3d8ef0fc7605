"""Fine-tune an extracted size alone, which can recover the accuracy that it lost by sharing weights.

ESPnet's own training starts from the extracted weights, with the data and the model of the size's config. All recipes use
AdamW. Its learning rate rises during the first tenth of the updates and then falls to zero.

A transducer (``model: todm``) trains in the precision of the supernet's ``autocast``. Other sizes are ESPnet's own model,
which trains in float32, except on GPUs with ``use_amp``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from espnet_todm.card import CARD, TRAINED_AS, WEIGHTS, read_card
from espnet_todm.deploy.folder import write_config, write_images, write_weights
from espnet_todm.errors import UserError
from espnet_todm.espnet.checkpoint_files import save_checkpoint
from espnet_todm.espnet.config_inheritance import CONFIG, best_model
from espnet_todm.espnet.load import load_checkpoint, load_extracted, read_config
from espnet_todm.models.fake_int8 import FAKE_QUANTIZATION
from espnet_todm.trainers.cpu_processes import train
from espnet_todm.util.checks import check_number
from espnet_todm.util.files import PathLike, atomic_directory, hash_file, make_folder, read_json, write_json, write_text

ENTRY = "fine_tuned"  # entry of the card
SUFFIX = "_ft"
# Options of the supernet's own training run. The others, for model and data, are kept.
RUN_OPTIONS = (
    *("config", "print_config", "required", "version", "distributed", "output_dir", "resume", "init_param", "ngpu"),
    *("local_rank", "multiprocessing_distributed", "patience", "val_scheduler_criterion", "early_stopping_criterion"),
    *("optim", "optim_conf", "scheduler", "scheduler_conf", "grad_clip", "max_epoch", "num_iters_per_epoch"),
    *("best_model_criterion", "keep_nbest_models", "nbest_averaging_interval", "freeze_param"),
)
DATA_OPTIONS = (
    *("train_data_path_and_name_and_type", "valid_data_path_and_name_and_type"),
    *("train_shape_file", "valid_shape_file"),
)
# Options of the training that the card records.
TOLD_OPTIONS = (
    *("optim", "optim_conf", "scheduler", "scheduler_conf", "grad_clip"),
    *("max_epoch", "num_iters_per_epoch", "seed", "use_amp", "model_conf", FAKE_QUANTIZATION),
)


@dataclass(frozen=True)
class FineTuning:
    """Options of fine-tuning.

    Args:
        steps: number of updates; the learning rate rises in the first tenth of them.
        lr: AdamW's highest learning rate.
        processes: number of processes on the CPU; they share each batch.
        ngpu: number of GPUs; 0 trains on the CPU.
        int8: train with the rounding errors of int8, see :mod:`espnet_todm.models.fake_int8`.
        more: command-line options for ``asr_train``; they override the others.

    Raises:
        UserError: a value is not allowed.
    """

    steps: int = 300
    lr: float = 0.001
    processes: int = 2
    ngpu: int = 0
    int8: bool = False
    more: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_number("steps", self.steps, at_least=2, whole=True)
        check_number("lr", self.lr, above=0)
        check_number("processes", self.processes, at_least=1, whole=True)
        check_number("ngpu", self.ngpu, at_least=0, whole=True)


def fine_tune(subnet: PathLike, output: PathLike, work: PathLike, options: FineTuning) -> dict[str, Any]:
    """Continue the training of the model in the folder ``subnet``, write it to ``output``, and return its card.

    The result has the layout of an extracted size. The entry ``fine_tuned`` of its card records the source and the options.
    The training's own files, such as log and plots, stay in ``work``.

    Raises UserError when the subnet's folder is damaged or has no card, its data are missing, ``output`` exists and is not
    an earlier fine-tuned model, or the training fails.
    """
    check_output(output, ENTRY)
    model, config = load_extracted(subnet)
    card = read_card(Path(subnet) / CARD)
    conf = {**training_config(config, options), **card.get(TRAINED_AS, {})}
    _check_data(conf, Path(subnet) / CONFIG)
    home = Path(work)
    make_folder(home)
    write_text(home / "fine_tune.yaml", yaml.safe_dump(conf, sort_keys=False, allow_unicode=True))
    save_checkpoint(model.state_dict(), home / "start.pth")  # from model.safetensors: no foreign pickle is loaded
    arguments = ["--config", str(home / "fine_tune.yaml"), "--init_param", str(home / "start.pth")]
    arguments += ["--output_dir", str(home), "--ngpu", str(options.ngpu), "--resume", "false"]
    if options.ngpu:
        arguments += ["--multiprocessing_distributed", "true"]
    train([*arguments, *options.more], 1 if options.ngpu else options.processes)
    return _finish(card, Path(subnet), Path(output), home, {key: config[key] for key in ("encoder", "encoder_conf")})


def training_config(config: Mapping[str, Any], options: FineTuning) -> dict[str, Any]:
    """Options for ``asr_train``: model and data from a size's config, and a short training with AdamW."""
    kept = {k: v for k, v in config.items() if k not in RUN_OPTIONS and not k.startswith("dist_")}
    if kept.get("frontend") is None:  # ESPnet writes null if input_size is given, but does not accept it
        kept.pop("frontend", None)
    warmup = max(1, options.steps // 10)
    return {
        **kept,
        "optim": "adamw",
        "optim_conf": {"lr": options.lr, "weight_decay": 0.01},
        "scheduler": "piecewiselinearwarmuplr",
        "scheduler_conf": {
            "warmup_steps_list": [0, warmup, options.steps],
            "warmup_lr_list": [0.0, options.lr, 0.0],
        },
        "grad_clip": 5.0,
        "max_epoch": 1,
        "num_iters_per_epoch": options.steps * (config.get("accum_grad") or 1),
        "keep_nbest_models": 1,
        "best_model_criterion": [["valid", "loss", "min"]],
        FAKE_QUANTIZATION: "int8" if options.int8 else None,
    }


def check_output(output: PathLike, entry: str) -> None:
    """Raises UserError when ``output`` exists, unless it is an earlier result: a folder whose card has this entry."""
    path = Path(output)
    card = path / CARD
    if path.exists() and not (card.is_file() and entry in read_json(card)):
        raise UserError(f"{path}: exists and is no earlier result of this command; give another name or remove it")


def _check_data(conf: Mapping[str, Any], source: Path) -> None:
    for key in DATA_OPTIONS:
        for entry in conf.get(key) or ():
            path = entry if isinstance(entry, str) else entry[0]
            if not Path(path).exists():
                raise UserError(
                    f"{source}: {key} names {path}, which is not there; run this where the supernet was trained"
                )


def _finish(card: Mapping[str, Any], subnet: Path, output: Path, home: Path, form: Mapping[str, Any]) -> dict[str, Any]:
    """Write the model trained in ``home`` to ``output``. ``form``: encoder and encoder_conf of the folder ``subnet``."""
    conf = read_config(home / CONFIG)
    checkpoint = home / best_model(conf)
    model, _ = load_checkpoint(home / CONFIG, checkpoint)
    made = {
        "from": {"name": card["name"], "sha256": hash_file(subnet / WEIGHTS)},
        "training": {key: conf.get(key) for key in TOLD_OPTIONS},
    }
    conf = {**conf, "init_param": [], "output_dir": str(output), **form}
    origin = {k: v for k, v in card["supernet"].items() if k != "max_abs_difference"}  # no longer true after training
    with atomic_directory(output) as folder:
        write_config(conf, folder, output)
        write_images(home, folder)
        weights = write_weights({name: value.clone() for name, value in model.state_dict().items()}, folder)
        written = {**card, "name": output.name, "supernet": origin, "weights": weights, ENTRY: made}
        write_json(folder / CARD, written)
    return written
