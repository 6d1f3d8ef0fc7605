"""What a configuration of ESPnet 3 names by dotted paths: the task, the optimizer, the scheduler, the callback."""

from __future__ import annotations

import importlib.util
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from espnet2.tasks import asr

from espnet_todm.encoders.conformer import TodmConformerEncoder
from espnet_todm.errors import UserError
from espnet_todm.espnet import registry
from espnet_todm.espnet.registry import ESPNET3, register
from espnet_todm.models.todm import TodmModel
from espnet_todm.optim.eden import Eden
from espnet_todm.optim.scaled_adam import ScaledAdam
from espnet_todm.trainers.kd import KDTrainer
from tests.tiny_model import TOKENS
from tests.tiny_training import SUPERNET

CONFIG = Path(__file__).parents[2] / "docs/espnet3/training.yaml"
WITHOUT = "espnet3 is not installed; it is on no package index yet"
SMALL = {**SUPERNET, "token_list": TOKENS, "input_size": 20, "frontend": None, "specaug": None, "normalize": None}


def build(task: Any, model: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> TodmModel:
    """As ESPnet 3's ``get_espnet_model(task, model)`` does."""
    monkeypatch.setattr(sys, "argv", ["dummy.py"])
    built: TodmModel = task.build_model(Namespace(**{**task.get_default_config(), **model}))
    return built


@pytest.fixture
def copied_task(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A second copy of ESPnet 2's ASR task in the place of ESPnet 3's, which is a copy of it."""
    register()
    spec = importlib.util.spec_from_file_location(ESPNET3, asr.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, ESPNET3, module)
    spec.loader.exec_module(module)
    return module


def test_the_page_s_configuration_builds_a_supernet_and_what_trains_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hydra, omegaconf = pytest.importorskip("hydra.utils"), pytest.importorskip("omegaconf")
    pytest.importorskip("lightning", reason="lightning is not installed")
    (tmp_path / "tokens.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    folders = omegaconf.OmegaConf.create({"data_dir": str(tmp_path), "exp_dir": str(tmp_path / "exp")})
    given = omegaconf.OmegaConf.merge(omegaconf.OmegaConf.load(CONFIG), folders)
    config: Any = omegaconf.OmegaConf.to_container(given, resolve=True)
    model = build(hydra.get_class(config["task"]), config["model"], monkeypatch)
    assert isinstance(model, TodmModel) and isinstance(model.subnet_trainer, KDTrainer)
    assert list(model.encoder.sizes) == ["full", "medium", "small"]
    optimizer = hydra.instantiate(config["optimizer"], filter(lambda p: p.requires_grad, model.parameters()))
    scheduler = hydra.instantiate(config["scheduler"], optimizer=optimizer)
    assert isinstance(optimizer, ScaledAdam) and isinstance(scheduler, Eden)
    (callback,) = (hydra.instantiate(entry) for entry in config["trainer"]["callbacks"])
    assert type(callback).__name__ == "TellStep" and callback.output_dir == str(tmp_path / "exp")
    assert len(CONFIG.read_text(encoding="utf-8").splitlines()) <= 35


def test_encoders_are_built_from_keyword_arguments() -> None:
    hydra = pytest.importorskip("hydra.utils")
    encoder = hydra.instantiate(
        {
            "_target_": "espnet_todm.encoders.conformer.TodmConformerEncoder",
            "input_size": 20,
            **SUPERNET["encoder_conf"],
        }
    )
    assert isinstance(encoder, TodmConformerEncoder) and "small" in encoder.sizes


def test_bad_options_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from espnet_todm.espnet3.task import SupernetTask

    with pytest.raises(UserError, match="encoder: 'conformer' is no supernet for model: todm"):
        build(SupernetTask, {**SMALL, "encoder": "conformer"}, monkeypatch)


def test_espnet3s_copy_of_the_task_gets_the_same_classes(
    copied_task: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "todm" not in copied_task.model_choices.classes
    registry._register_in_espnet3()
    for choices in ("encoder_choices", "decoder_choices", "model_choices", "specaug_choices"):
        ours = {name for name in getattr(asr, choices).classes if name.startswith("todm")}
        assert ours and ours <= getattr(copied_task, choices).classes.keys()
    model = build(copied_task.ASRTask, SMALL, monkeypatch)
    assert isinstance(model, TodmModel) and isinstance(model.subnet_trainer, KDTrainer)


def test_another_espnet3_does_no_harm(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, ESPNET3, ModuleType(ESPNET3))
    registry._register_in_espnet3()
    assert "not registered in ESPnet 3" in caplog.text and "encoder_choices" in caplog.text


@pytest.mark.skipif(importlib.util.find_spec("espnet3") is None, reason=WITHOUT)
def test_the_installed_espnet3_has_the_interface() -> None:
    """What this package expects: registries, how a model is built, and the step of the LightningModule."""
    register()
    task = importlib.import_module(ESPNET3)
    for choices in ("encoder_choices", "decoder_choices", "model_choices", "specaug_choices"):
        assert any(name.startswith("todm") for name in getattr(task, choices).classes)
    utils = importlib.import_module("espnet3.utils.task_utils")
    model = utils.get_espnet_model("espnet_todm.espnet3.task.SupernetTask", {**SMALL, "seed": 0})
    assert isinstance(model, TodmModel) and isinstance(model.subnet_trainer, KDTrainer)
    module = importlib.import_module("espnet3.components.modeling.lightning_module")
    given: dict[str, Any] = {}

    class Stub:
        def model(self, **tensors: Any) -> Any:
            given.update(tensors)
            return torch.zeros(()), {"loss": torch.zeros(())}, torch.ones(())

        def _check_nan_inf_loss(self, *_: Any) -> bool:
            return False

        def log_dict(self, *_: Any, **__: Any) -> None:
            pass

    module.ESPnetLightningModule._step(Stub(), (["utt"], {"step": 3}), 0, "train")
    assert given == {"step": 3}
