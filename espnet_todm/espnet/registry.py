"""Registers this package's classes in ESPnet. No other module changes ESPnet's registries."""

from __future__ import annotations

import importlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, redirect_stderr, redirect_stdout
from functools import wraps
from operator import attrgetter
from typing import Any

from espnet_todm.espnet.contract import REGISTRATION, SUPPORTED
from espnet_todm.hook import short_waits

ESPNET3 = "espnet3.systems.asr.task"  # a copy of ESPnet's ASR task, with registries of its own
_registered = False


def register() -> None:
    """Register this package's classes in ESPnet, for this process. Further calls do nothing.

    Raises RuntimeError, which names the symbol, if this version of ESPnet lacks a symbol that registration needs.
    """
    global _registered
    if _registered:
        return
    with short_waits(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
        # ESPnet's imports print messages about flash attention, nltk data and syntax, which do not help a user.
        warnings.simplefilter("ignore")
        symbols = {(module, name): _symbol(module, name) for module, name in REGISTRATION}
    if _registered:  # the import hook has registered while the lines above imported ESPnet
        return
    _registered = True
    _register_classes(symbols)
    _register_subnet_trainers(symbols)
    _register_iterators(symbols)
    _register_nonspeech(symbols)
    _register_fake_quantization(symbols)
    _register_init_param(symbols)
    _wrap_methods(symbols["espnet2.tasks.asr", "ASRTask"])
    if importlib.util.find_spec("espnet3") is not None:
        _register_in_espnet3()


def _symbol(module: str, name: str) -> Any:
    try:
        return attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise RuntimeError(
            f"espnet_todm cannot register: ESPnet has no {module}.{name} ({error}); it works with ESPnet {SUPPORTED}"
        ) from error


def _register_classes(symbols: dict[tuple[str, str], Any]) -> None:
    from espnet_todm.optim.eden import Eden, Eden2
    from espnet_todm.optim.scaled_adam import ScaledAdam

    for choices, classes in _classes().items():
        symbols["espnet2.tasks.asr", choices].classes.update(classes)
    symbols["espnet2.tasks.abs_task", "optim_classes"]["scaledadam"] = ScaledAdam
    symbols["espnet2.tasks.abs_task", "scheduler_classes"].update({"eden": Eden, "eden2": Eden2})


def _classes() -> dict[str, dict[str, type]]:
    """Registry of an ASR task -> our classes. Parsers share registries by reference, so they are updated and never
    replaced. Keys must be lower case."""
    from espnet_todm.decoders.stateless import StatelessDecoder
    from espnet_todm.encoders.known import encoders
    from espnet_todm.models.kaldi_fbank import KaldiFbank
    from espnet_todm.models.spec_augment import SpecAugmentByLength
    from espnet_todm.models.todm import TodmModel
    from espnet_todm.util.acoustics import FRONTEND

    return {
        "encoder_choices": dict(encoders()),
        "decoder_choices": {"todm_stateless": StatelessDecoder},
        "model_choices": {"todm": TodmModel},
        "frontend_choices": {FRONTEND: KaldiFbank},
        "specaug_choices": {"todm_specaug": SpecAugmentByLength},
    }


def _register_subnet_trainers(symbols: dict[tuple[str, str], Any]) -> None:
    """Add the options ``subnet_trainer`` and ``subnet_trainer_conf`` to the ASR task, which builds them with the model."""
    from espnet_todm.espnet.trainer import TodmTrainer

    task = symbols["espnet2.tasks.asr", "ASRTask"]
    task.trainer = TodmTrainer
    _add_subnet_trainers(task, symbols["espnet2.tasks.asr", "encoder_choices"].classes)


def _add_subnet_trainers(task: Any, encoders: dict[str, Any]) -> None:
    from espnet2.train.class_choices import ClassChoices

    from espnet_todm.models.subnet_trainer import SubnetTrainer
    from espnet_todm.trainers.known import trainers

    choices = ClassChoices(
        name="subnet_trainer",
        classes=trainers(),
        type_check=SubnetTrainer,
        default=None,
        optional=True,
    )
    task.class_choices_list.append(choices)
    _register_building(task, choices, encoders)


def _register_in_espnet3() -> None:
    """Register in ESPnet 3's copy of the ASR task. Training with ESPnet 2 does not need it, so a failure is a warning."""
    try:
        module = importlib.import_module(ESPNET3)
        registries = {choices: getattr(module, choices).classes for choices in _classes()}
        task = module.ASRTask
    except (ImportError, AttributeError) as error:
        logging.warning("espnet_todm is not registered in ESPnet 3, whose ASR task is another: %s", error)
        return
    for choices, classes in _classes().items():
        registries[choices].update(classes)
    _add_subnet_trainers(task, registries["encoder_choices"])


def _register_building(task: Any, subnet_trainers: Any, encoders: dict[str, Any]) -> None:
    """Check ``model: todm`` before the task builds it, and add its joiner and its subnet trainer afterwards."""
    from espnet_todm.decoders.stateless import StatelessDecoder
    from espnet_todm.espnet.parts import part_errors
    from espnet_todm.models.options import check_configuration
    from espnet_todm.models.todm import TodmModel
    from espnet_todm.util.checks import build

    build_stock_model = task.build_model.__func__

    def build_model(cls: Any, args: Any) -> Any:
        if str(getattr(args, "model", None)).lower() == "todm":
            check_configuration(args, encoders)
            args.joint_net_conf = getattr(args, "joint_net_conf", None) or {}  # ESPnet fails on its own default, None
        with part_errors(args):
            model = build_stock_model(cls, args)
        if isinstance(model, TodmModel):
            if isinstance(model.decoder, StatelessDecoder):  # ESPnet builds a joiner only for its own transducer
                model.join(model.make_joint(getattr(args, "joint_net_conf", None) or {}))
            trainer = subnet_trainers.get_class(getattr(args, "subnet_trainer", None) or "kd")
            conf = getattr(args, "subnet_trainer_conf", None) or {}
            seed = getattr(args, "seed", 0)
            model.subnet_trainer = build(trainer, conf, "subnet_trainer_conf", model, seed=seed)
        return model

    task.build_model = classmethod(build_model)


def _add_option(symbols: dict[tuple[str, str], Any], name: str, classes: Mapping[str, type]) -> Any:
    """Add the options ``name``, one of ``classes`` or none, and ``<name>_conf`` to the ASR task, which is returned."""
    task = symbols["espnet2.tasks.asr", "ASRTask"]
    make = symbols["espnet2.train.class_choices", "ClassChoices"]
    task.class_choices_list.append(make(name=name, classes=classes, default=None, optional=True))
    return task


def _register_iterators(symbols: dict[tuple[str, str], Any]) -> None:
    """Add the options ``iterator`` and ``iterator_conf`` to the ASR task. Without them it builds ESPnet's own iterators."""
    from espnet_todm.iterators.options import ITERATORS

    task = _add_option(symbols, "iterator", ITERATORS)
    build_stock = task.build_iter_factory.__func__

    def build_iter_factory(cls: Any, args: Any, distributed_option: Any, mode: str, kwargs: Any = None) -> Any:
        factory = None
        if str(getattr(args, "iterator", None)).lower() in ITERATORS:
            from espnet_todm.iterators.factory import build_factory
            from espnet_todm.iterators.sources import ALL, Share

            one = not distributed_option.distributed or mode == "plot_att"  # which only the first rank does
            share = ALL if one else Share(distributed_option.dist_rank, distributed_option.dist_world_size)
            training = mode == "train"
            parts = cls.build_preprocess_fn(args, train=training), cls.build_collate_fn(args, train=training)
            factory = build_factory(args, mode, share, *parts)
        return factory or build_stock(cls, args, distributed_option, mode, kwargs)

    task.build_iter_factory = classmethod(build_iter_factory)


def _register_nonspeech(symbols: dict[tuple[str, str], Any]) -> None:
    """Add the options ``nonspeech`` and ``nonspeech_conf`` to the ASR task, whose training data then have such sounds."""
    from espnet_todm.iterators.nonspeech import NONSPEECH, with_nonspeech

    task = _add_option(symbols, "nonspeech", NONSPEECH)
    build_stock = task.build_preprocess_fn.__func__

    def build_preprocess_fn(cls: Any, args: Any, train: bool) -> Any:
        stock = build_stock(cls, args, train)
        return with_nonspeech(args, stock) if train else stock

    task.build_preprocess_fn = classmethod(build_preprocess_fn)


def _register_fake_quantization(symbols: dict[tuple[str, str], Any]) -> None:
    """Add the option ``fake_quantization`` to the ASR task; this package's trainer reads it."""
    from espnet_todm.models.fake_int8 import FAKE_QUANTIZATION, KINDS

    _add_option(symbols, FAKE_QUANTIZATION, KINDS)


def _register_init_param(symbols: dict[tuple[str, str], Any]) -> None:
    from espnet_todm.espnet.init_param import filling_sizes

    load = filling_sizes(symbols["espnet2.tasks.abs_task", "load_pretrained_model"])
    importlib.import_module("espnet2.tasks.abs_task").load_pretrained_model = load  # type: ignore[attr-defined]


def _wrap_methods(task: Any) -> None:
    """Wrap methods of ESPnet's task: :mod:`espnet_todm.espnet.guard` checks files in every process of a training, and
    errors in the construction of batches become one line."""
    from espnet_todm.espnet.guard import guarded_training
    from espnet_todm.espnet.inputs import batch_errors

    _wrap(task, "main_worker", guarded_training)
    _wrap(task, "build_iter_factory", lambda args, distributed_option, mode, kwargs=None: batch_errors(mode))
    check_model_files(task)


def _wrap(task: Any, method: str, around: Callable[..., AbstractContextManager[None]]) -> None:
    """Run a class method of an ESPnet task inside the context manager ``around``, which gets the same arguments."""
    stock = getattr(task, method).__func__

    @wraps(stock)  # spawned processes look it up by name
    def wrapped(cls: Any, *args: Any, **kwargs: Any) -> Any:
        with around(*args, **kwargs):
            return stock(cls, *args, **kwargs)

    setattr(task, method, classmethod(wrapped))


def check_model_files(task: Any) -> None:
    """Check the weights file before an ESPnet task loads it for decoding."""
    from espnet_todm.espnet.checkpoint_files import check_weights_file

    def check(config_file: Any = None, model_file: Any = None, device: str = "cpu") -> AbstractContextManager[None]:
        if model_file is not None:
            check_weights_file(model_file)
        return nullcontext()

    _wrap(task, "build_model_from_file", check)
