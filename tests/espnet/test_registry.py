"""Our names in ESPnet: present, usable from YAML, registered once, and a clear word when ESPnet has changed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from espnet2.tasks import abs_task, asr

import espnet_todm
from espnet_todm.errors import UserError
from espnet_todm.espnet import registry
from espnet_todm.espnet.trainer import TodmTrainer
from espnet_todm.models.spec_augment import SpecAugmentByLength
from espnet_todm.models.todm import TodmModel
from espnet_todm.trainers.kd import KDTrainer
from espnet_todm.trainers.single import SingleTrainer
from tests.tiny_training import CONFIG, arguments, python, write_config, write_data

espnet_todm.register()


def state_of_registries() -> tuple[Any, ...]:
    return (
        dict(asr.encoder_choices.classes),
        dict(asr.model_choices.classes),
        dict(asr.specaug_choices.classes),
        dict(abs_task.optim_classes),
        dict(abs_task.scheduler_classes),
        list(asr.ASRTask.class_choices_list),
        asr.ASRTask.build_model,
        asr.ASRTask.trainer,
    )


def test_registering_twice_changes_nothing() -> None:
    before = state_of_registries()
    espnet_todm.register()
    registry.register()
    assert state_of_registries() == before
    assert [choices.name for choices in asr.ASRTask.class_choices_list].count("subnet_trainer") == 1


def test_nothing_of_espnets_own_is_lost() -> None:
    assert {"conformer", "e_branchformer", "transformer"} <= asr.encoder_choices.classes.keys()
    assert {"adam", "adamw", "sgd"} <= abs_task.optim_classes.keys()
    assert {"warmuplr", "noamlr"} <= abs_task.scheduler_classes.keys()


@pytest.mark.parametrize(("module", "name"), registry.REGISTRATION)
def test_a_symbol_that_moved_is_named(module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state_of_registries()
    monkeypatch.setattr(registry, "_registered", False)
    with monkeypatch.context() as changed:
        changed.delattr(f"{module}.{name}")
        with pytest.raises(RuntimeError, match=rf"ESPnet has no {module}\.{name} .*works with ESPnet 2"):
            registry.register()
    assert state_of_registries() == before  # all or nothing
    assert registry._registered is False


def test_a_module_that_moved_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", False)
    monkeypatch.setattr(registry, "REGISTRATION", (("espnet2.tasks.speech_recognition", "ASRTask"),))
    with pytest.raises(RuntimeError, match=r"ESPnet has no espnet2\.tasks\.speech_recognition\.ASRTask"):
        registry.register()


def build(tmp_path: Path, **changes: Any) -> tuple[torch.nn.Module, Any]:
    """The model that ESPnet's own command line makes of a YAML file with our names."""
    data = write_data(tmp_path / "data")
    write_config(data / "config.yaml", **changes)
    options = asr.ASRTask.get_parser().parse_args(arguments(data, tmp_path / "exp"))
    return asr.ASRTask.build_model(options), options


@pytest.mark.parametrize(
    ("name", "conf", "cls"), [("kd", {"kd_weight": 0.3}, KDTrainer), ("single", {"size": "small"}, SingleTrainer)]
)
def test_subnet_trainers_from_yaml(tmp_path: Path, name: str, conf: dict, cls: type) -> None:
    model, _ = build(tmp_path, subnet_trainer=name, subnet_trainer_conf=conf)
    assert isinstance(model, TodmModel) and type(model.subnet_trainer) is cls


def test_subnet_trainer_defaults_to_kd_with_the_runs_seed(tmp_path: Path) -> None:
    model, _ = build(tmp_path, subnet_trainer=None, subnet_trainer_conf=None, seed=11)
    assert type(model.subnet_trainer) is KDTrainer and model.subnet_trainer.sandwich.seed == 11


def test_other_models_are_left_alone(tmp_path: Path) -> None:
    stock = {"output_size": 16, "attention_heads": 2, "linear_units": 32, "num_blocks": 1}
    model, _ = build(tmp_path, encoder="conformer", encoder_conf=stock, model=None, subnet_trainer=None)
    assert not isinstance(model, TodmModel)


def test_specaug_from_yaml(tmp_path: Path) -> None:
    model, _ = build(tmp_path, specaug="todm_specaug", specaug_conf={"freq_masks": 1})
    assert type(model.specaug) is SpecAugmentByLength and model.specaug.freq_masks == 1


@pytest.mark.parametrize("optimizer", ["scaledadam", "adam"])
@pytest.mark.parametrize("scheduler", ["eden", "eden2", "warmuplr"])
def test_optimizers_and_schedulers_from_yaml(tmp_path: Path, optimizer: str, scheduler: str) -> None:
    model, options = build(tmp_path, optim=optimizer, optim_conf={"lr": 0.01}, scheduler=scheduler, scheduler_conf={})
    (built,) = asr.ASRTask.build_optimizers(options, model)
    assert type(built) is abs_task.optim_classes[optimizer]
    schedule = abs_task.scheduler_classes[scheduler](built, **options.scheduler_conf)
    built.step()
    schedule.step()


def test_registered_task_trains_with_our_trainer() -> None:
    assert asr.ASRTask.trainer is TodmTrainer
    assert CONFIG["encoder"] in asr.encoder_choices.choices()


def test_importing_the_package_is_light() -> None:
    program = "import sys, espnet_todm, espnet_todm.hook; print(*{name.split('.')[0] for name in sys.modules})"
    done = python(["-c", program])
    assert done.returncode == 0, done.stderr
    assert not {"torch", "espnet2", "espnet", "numpy"} & set(done.stdout.split())
    assert "torch" in sys.modules  # the test's own process did import it, so the check can fail


def test_what_a_task_decodes_with_is_checked_first(tmp_path: Path) -> None:
    class Task:
        """As ESPnet's for language models, which asr_inference loads beside the recogniser."""

        @classmethod
        def build_model_from_file(cls, config_file: str, model_file: str, device: str = "cpu") -> object:
            return torch.load(model_file, weights_only=False)

    registry.check_model_files(Task)
    torch.save({"w": torch.ones(1)}, tmp_path / "good.pth")
    assert Task.build_model_from_file("config.yaml", str(tmp_path / "good.pth")) == {"w": torch.ones(1)}
    torch.save({"w": print}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"bad\.pth: holds (\w+\.)?print, which is no tensor"):
        Task.build_model_from_file("config.yaml", str(tmp_path / "bad.pth"))
