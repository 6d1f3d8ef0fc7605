"""The configurations of OrthoSoftmax's tables: their numbers, and that the training command takes them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from espnet2.tasks.abs_task import scheduler_classes

import espnet_todm
from espnet_todm.encoders.conformer import TodmConformerEncoder
from espnet_todm.espnet.config_inheritance import read_config
from espnet_todm.espnet.options import parse_training
from tests.recipes.conftest import ROOT

espnet_todm.register()
# sizes, criterion, (width, units, heads), updates, penalty, its steps, temperature, layer_drop, dropout, final, SpecAugment
TED2, LIBRISPEECH = (384, 1536, 6), (512, 2048, 8)
TABLE: dict[str, tuple[Any, ...]] = {
    "tedlium2/conf/ortho_flops_2sizes": ([0.63], "flops", TED2, 375000, "l2_sqrt", 225000, 1, 0.1, 0.2, 0.2, (16, 5)),
    "tedlium2/conf/ortho_params_2sizes": ([0.5], "params", TED2, 375000, "l2", 225000, 1, 0.1, 0.2, 0.2, (5, 8)),
    "tedlium2/conf/ortho_layer_flops_2sizes": ([0.63], "flops", TED2, 375000, "l2_sqrt", 225000, 1, 0.2, 0.2, 0.2, (16, 5)),
    "tedlium2/conf/ortho_layer_params_2sizes": ([0.5], "params", TED2, 375000, "l2", 225000, 1, 0.3, 0.2, 0.2, (5, 8)),
    "tedlium2/conf/ortho_flops_3sizes": ([0.75, 0.52], "flops", TED2, 375000, "l2_sqrt", 225000, 1, 0.1, 0.2, 0.2, (16, 5)),
    "tedlium2/conf/ortho_params_3sizes": (
        [0.67, 0.352], "params", TED2, 375000, "l2_sqrt", 225000, 1, 0.1, 0.1, 0.2, (16, 5),
    ),
    "tedlium2/conf/ortho_5sizes": (
        [0.759, 0.578, 0.457, 0.337], "flops", TED2, 375000, "l2_sqrt", 225000, 1, 0.1, 0.2, 0.2, (16, 8),
    ),
    "librispeech/conf/ortho_3sizes": ([0.72, 0.45], "flops", LIBRISPEECH, 732000, "l2_sqrt", 439200, 2, 0.1, 0.1, 0, (5, 8)),
    "librispeech/conf/ortho_5sizes": (
        [0.793, 0.588, 0.451, 0.314], "flops", LIBRISPEECH, 732000, "l2_sqrt", 366000, 2, 0.1, 0.1, 0, (5, 8),
    ),
}  # fmt: skip
BPE = {"tedlium2/conf/ortho_flops_3sizes_bpe", "librispeech/conf/ortho_3sizes_bpe"}


def config_of(name: str) -> dict[str, Any]:
    return read_config(ROOT / "egs" / f"{name}.yaml")


@pytest.mark.parametrize("name", TABLE)
def test_numbers_are_those_of_the_table(name: str) -> None:
    config = config_of(name)
    sizes, criterion, shape, steps, penalty, penalty_steps, temperature, layer_drop, dropout, final, masks = TABLE[name]
    encoder, trainer, schedule = config["encoder_conf"], config["subnet_trainer_conf"], config["scheduler_conf"]
    assert list(encoder["sizes"].values()) == sizes and encoder["criterion"] == criterion
    assert tuple(encoder[key] for key in ("output_size", "linear_units", "attention_heads")) == shape
    assert schedule["warmup_steps_list"][3] - 1 == steps == config["max_epoch"] * config["num_iters_per_epoch"]
    assert trainer["stage1_steps"] == 0.6 * steps and trainer["temperature_start"] == temperature
    assert (trainer["penalty"], trainer["penalty_steps"], trainer["layer_drop"]) == (penalty, penalty_steps, layer_drop)
    assert trainer["granularity"] == ("layer" if "layer" in name else "component")
    assert encoder["dropout_rate"] == dropout and config.get("ctc_conf", {}).get("dropout_rate", 0) == final
    assert (config["specaug_conf"]["freq_masks"], config["specaug_conf"]["freq_width"]) == masks


@pytest.mark.parametrize(
    ("name", "corners"),
    [
        ("librispeech/conf/ortho_3sizes", {0: 4e-6, 164700: 2.02e-4, 329400: 4e-4, 658800: 4e-6, 732000: 1e-8, 8e5: 1e-8}),
        ("tedlium2/conf/ortho_5sizes", {0: 4e-6, 165000: 4e-4, 330000: 4e-5, 352500: 2.0005e-5, 375000: 1e-8, 4e5: 1e-8}),
    ],
)  # fmt: skip
def test_learning_rates_have_the_papers_corners(name: str, corners: dict[float, float]) -> None:
    """After so many updates, by ESPnet's own schedule."""
    config = config_of(name)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=config["optim_conf"]["lr"])
    schedule = scheduler_classes[config["scheduler"]](optimizer, **config["scheduler_conf"])
    for updates, rate in corners.items():
        schedule.last_epoch = updates
        assert float(schedule.get_lr()[0]) == pytest.approx(rate), updates


@pytest.mark.parametrize(
    ("name", "millions", "shares"),
    [
        ("tedlium2/conf/ortho_flops_3sizes", 42.1, {8: 0.756, 4: 0.512}),
        ("librispeech/conf/ortho_5sizes", 74.2, {9: 0.794, 6: 0.588, 4: 0.451, 2: 0.313}),
    ],
)
def test_supernet_has_the_papers_size(name: str, millions: float, shares: dict[int, float]) -> None:
    """Parameters in all, and FLOPs of the first blocks, on which the paper's shares for LibriSpeech agree to 0.001."""
    options = {**config_of(name)["encoder_conf"], "sizes": {}}
    with torch.device("meta") if hasattr(torch.device, "__enter__") else nullcontext():  # not before torch 2.0
        encoder = TodmConformerEncoder(input_size=80, **options)
    table = encoder.component_table()
    full = table.cost(table.full())
    output_layer = 79 * (options["output_size"] + 1)
    assert (full.params + output_layer) / 1e6 == pytest.approx(millions, abs=0.06)
    for blocks, share in shares.items():
        kept = table.cost([key for key in table.by_key if key.layer < blocks])
        assert kept.flops / full.flops == pytest.approx(share, abs=0.001)


def test_there_are_no_other_configurations() -> None:
    found = {str(path.relative_to(ROOT / "egs").with_suffix("")) for path in ROOT.glob("egs/*/conf/ortho_*.yaml")}
    assert found == {*TABLE, *BPE}


@pytest.mark.parametrize("name", [*TABLE, *sorted(BPE)])
def test_the_training_command_takes_them(name: str) -> None:
    path = ROOT / "egs" / f"{name}.yaml"
    options = parse_training(["--config", str(path), "--output_dir", "-", "--token_list", "-"])
    encoder = dict(options.encoder_conf, num_blocks=1, sizes={})
    built = TodmConformerEncoder(input_size=80, **encoder)
    assert built.encoders[0].order[1][0] == "conv_module" and not hasattr(built.encoders[0].self_attn, "linear_pos")
