"""The only place that touches ESPnet's registries, and where differences between its versions live."""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, redirect_stderr, redirect_stdout
from functools import wraps
from operator import attrgetter
from typing import Any

from espnet_todm.espnet.contract import REGISTRATION, SUPPORTED

_registered = False


def register() -> None:
    """Make this package's names known to ESPnet, in this process; calling it again does nothing.

    Raises RuntimeError, naming the symbol, when this version of ESPnet lacks one that registration needs.
    """
    global _registered
    if _registered:
        return
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
        # ESPnet's imports print of flash attention, of nltk data and of syntax, none of which a user can act on.
        warnings.simplefilter("ignore")
        symbols = {(module, name): _symbol(module, name) for module, name in REGISTRATION}
    if _registered:  # by the import hook, while the lines above imported ESPnet
        return
    _registered = True
    _register_classes(symbols)
    _register_subnet_trainers(symbols)
    _register_init_param(symbols)
    _wrap_methods(symbols["espnet2.tasks.asr", "ASRTask"])


def _symbol(module: str, name: str) -> Any:
    try:
        return attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise RuntimeError(
            f"espnet_todm cannot register: ESPnet has no {module}.{name} ({error}); it works with ESPnet {SUPPORTED}"
        ) from error


def _register_classes(symbols: dict[tuple[str, str], Any]) -> None:
    from espnet_todm.decoders.stateless import StatelessDecoder
    from espnet_todm.encoders.known import encoders
    from espnet_todm.models.spec_augment import SpecAugmentByLength
    from espnet_todm.models.todm import TodmModel
    from espnet_todm.optim.eden import Eden, Eden2
    from espnet_todm.optim.scaled_adam import ScaledAdam

    # These dicts are shared with parsers by reference: they are filled, never rebound. Keys must be lower case.
    symbols["espnet2.tasks.asr", "encoder_choices"].classes.update(encoders())
    symbols["espnet2.tasks.asr", "decoder_choices"].classes["todm_stateless"] = StatelessDecoder
    symbols["espnet2.tasks.asr", "model_choices"].classes["todm"] = TodmModel
    symbols["espnet2.tasks.asr", "specaug_choices"].classes["todm_specaug"] = SpecAugmentByLength
    symbols["espnet2.tasks.abs_task", "optim_classes"]["scaledadam"] = ScaledAdam
    symbols["espnet2.tasks.abs_task", "scheduler_classes"].update({"eden": Eden, "eden2": Eden2})


def _register_subnet_trainers(symbols: dict[tuple[str, str], Any]) -> None:
    """``subnet_trainer`` and ``subnet_trainer_conf`` become options of the ASR task, which builds them with the model."""
    from espnet_todm.espnet.trainer import TodmTrainer
    from espnet_todm.models.subnet_trainer import SubnetTrainer
    from espnet_todm.trainers.known import trainers

    task = symbols["espnet2.tasks.asr", "ASRTask"]
    choices = symbols["espnet2.train.class_choices", "ClassChoices"](
        name="subnet_trainer",
        classes=trainers(),
        type_check=SubnetTrainer,
        default=None,
        optional=True,
    )
    task.class_choices_list.append(choices)
    task.trainer = TodmTrainer
    _register_building(task, choices, symbols["espnet2.tasks.asr", "encoder_choices"].classes)


def _register_building(task: Any, subnet_trainers: Any, encoders: dict[str, Any]) -> None:
    """``model: todm`` is checked before the task builds it, and gets its joiner and its subnet trainer afterwards."""
    from espnet_todm.decoders.stateless import StatelessDecoder
    from espnet_todm.espnet.parts import part_errors
    from espnet_todm.models.options import check_configuration
    from espnet_todm.models.todm import TodmModel
    from espnet_todm.util.checks import build

    build_stock_model = task.build_model.__func__

    def build_model(cls: Any, args: Any) -> Any:
        if str(getattr(args, "model", None)).lower() == "todm":
            check_configuration(args, encoders)
            args.joint_net_conf = getattr(args, "joint_net_conf", None) or {}  # ESPnet's default is one it cannot take
        with part_errors(args):
            model = build_stock_model(cls, args)
        if isinstance(model, TodmModel):
            if isinstance(model.decoder, StatelessDecoder):  # ESPnet builds a joiner for its own transducer only
                model.join(model.make_joint(getattr(args, "joint_net_conf", None) or {}))
            trainer = subnet_trainers.get_class(getattr(args, "subnet_trainer", None) or "kd")
            conf = getattr(args, "subnet_trainer_conf", None) or {}
            seed = getattr(args, "seed", 0)
            model.subnet_trainer = build(trainer, conf, "subnet_trainer_conf", model, seed=seed)
        return model

    task.build_model = classmethod(build_model)


def _register_init_param(symbols: dict[tuple[str, str], Any]) -> None:
    from espnet_todm.espnet.init_param import filling_sizes

    load = filling_sizes(symbols["espnet2.tasks.abs_task", "load_pretrained_model"])
    importlib.import_module("espnet2.tasks.abs_task").load_pretrained_model = load  # type: ignore[attr-defined]


def _wrap_methods(task: Any) -> None:
    """What ESPnet's task reads and writes is looked after in every process of a training, see
    :mod:`espnet_todm.espnet.guard`, and what goes wrong while batches of a set are made is told in one line."""
    from espnet_todm.espnet.guard import guarded_training
    from espnet_todm.espnet.inputs import batch_errors

    _wrap(task, "main_worker", guarded_training)
    _wrap(task, "build_iter_factory", lambda args, distributed_option, mode, kwargs=None: batch_errors(mode))
    check_model_files(task)


def _wrap(task: Any, method: str, around: Callable[..., AbstractContextManager[None]]) -> None:
    """``around``, which is given the same arguments, goes around a class method of a task of ESPnet."""
    stock = getattr(task, method).__func__

    @wraps(stock)  # spawned processes find it by its name
    def wrapped(cls: Any, *args: Any, **kwargs: Any) -> Any:
        with around(*args, **kwargs):
            return stock(cls, *args, **kwargs)

    setattr(task, method, classmethod(wrapped))


def check_model_files(task: Any) -> None:
    """The weights that a task of ESPnet loads for decoding are checked first."""
    from espnet_todm.espnet.checkpoint_files import check_weights_file

    def check(config_file: Any = None, model_file: Any = None, device: str = "cpu") -> AbstractContextManager[None]:
        if model_file is not None:
            check_weights_file(model_file)
        return nullcontext()

    _wrap(task, "build_model_from_file", check)
