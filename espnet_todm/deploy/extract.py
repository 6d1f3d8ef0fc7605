"""Write subnets of a trained supernet out as small ordinary models."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Optional, cast

import torch
from torch import Tensor

from espnet_todm.card import CARD, TRAINED_AS, make_card
from espnet_todm.components import FULL, Subnet
from espnet_todm.deploy.folder import write_config, write_images, write_weights
from espnet_todm.deploy.stock import STOCK, as_supernet
from espnet_todm.encoders.supernet import SubsampledFeatures, SupernetEncoder
from espnet_todm.errors import UserError
from espnet_todm.espnet.load import build_model, read_trained_config, read_weights
from espnet_todm.models.options import OPTIONS
from espnet_todm.models.todm import TodmModel
from espnet_todm.sizes import fit_budget
from espnet_todm.util.files import PathLike, atomic_directory, hash_file, write_json
from espnet_todm.util.units import parse_amount

# Options of a supernet's training config that a small model has no use for.
OF_THE_TRAINING = ("subnet_trainer", "subnet_trainer_conf", "init_param", "model", "model_conf")
# The extracted model and the slice run the same operations on the same numbers; only the order of sums may differ.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Supernet:
    """A trained supernet with its config and where it came from."""

    model: TodmModel
    config: dict[str, Any]
    source: dict[str, Any]

    @property
    def encoder(self) -> SupernetEncoder:
        return self.model.encoder

    def origin(self) -> dict[str, Any]:
        """Where it came from, and the machine that its latencies were measured on, if they were."""
        measured = self.encoder.latency
        return {**self.source, "latency_machine": dict(measured.machine)} if measured is not None else self.source


def load_supernet(config: PathLike, checkpoint: PathLike) -> Supernet:
    """A model with one of ESPnet's own encoders that supernets are made of counts as a supernet of one size, ``full``.

    Raises UserError when the files do not fit or the model is no supernet.
    """
    conf = as_supernet(read_trained_config(config))
    if conf.get("model") != "todm":
        raise UserError(
            f"{config}: model: {conf.get('model')!r} with encoder: {conf['encoder']} is no supernet; needed: model: todm, or"
            f" a stock encoder: {', '.join(STOCK)}"
        )
    model = cast(TodmModel, build_model(conf, read_weights(checkpoint), checkpoint))
    path = Path(checkpoint)
    source = {"config": str(config), "checkpoint": str(checkpoint), "checkpoint_sha256": hash_file(path.resolve())}
    return Supernet(model, conf, source)


def pick_subnets(
    supernet: Supernet,
    sizes: Sequence[str] = (),
    params: Sequence[str] = (),
    flops: Sequence[str] = (),
    latency: Sequence[str] = (),
) -> list[Subnet]:
    """Subnets by name or card, by budgets of parameters ("10M"), of FLOPs ("1.2G") and of seconds of the encoder's
    computing ("0.02"), both per second of speech; all sizes if none. Raises UserError."""
    table, encoder = supernet.model.component_table(), supernet.encoder
    picked = [encoder.find_subnet(name) for name in sizes]
    for criterion, budgets in (("params", params), ("flops", flops), ("latency", latency)):
        picked += [fit_budget(f"{criterion}_{text}", table, criterion, parse_amount(text)) for text in budgets]
    return picked or [encoder.find_subnet(name) for name in encoder.sizes]


def extract(
    supernet: Supernet, subnet: Subnet, output: PathLike, calibration: Optional[Iterable[Tensor]] = None
) -> dict[str, Any]:
    """Write one subnet to the folder ``output``; returns its card.

    The folder holds model.safetensors, model.pth, config.yaml and what the config names, so ESPnet's own tools load it:
    as ESPnet's own encoder, such as ``encoder: conformer``, when the subnet has that form, else as the supernet's own.
    A transducer stays ``model: todm``, since ESPnet's own model asks for a loss that is on no package index.

    Args:
        calibration: feature tensors (T, F) to estimate batch norm statistics on. Needed when the convolution has batch
            norm and the subnet is no named size, since only those gathered statistics during training.

    Raises:
        UserError: calibration data are needed and not given.
        RuntimeError: the small model does not compute what the slice computes (a defect of this package).
    """
    small = supernet.encoder.extract(subnet)
    if not supernet.encoder.needs_calibration(subnet):
        calibration = None
    elif calibration is None:
        raise UserError(f"subnet {subnet.name}: its batch norm needs data to be recalibrated; give --calibrate SCP")
    else:
        utterances = calibration_fronts(supernet.model, small, calibration)
        small.calibrate(utterances, partial(supernet.model.between, FULL))
    state = supernet.model.outer_state(subnet)
    state.update({f"encoder.{name}": value for name, value in small.state_dict().items()})
    with atomic_directory(output) as folder:
        conf = _small_config(supernet, subnet, Path(output))
        write_config(conf, folder)
        write_images(Path(supernet.source["config"]).parent, folder)
        model = build_model(conf, state, output)
        difference = None if calibration else _largest_difference(supernet, subnet, model)
        card = _card(supernet, subnet, conf, difference)
        card["weights"] = write_weights(state, folder)
        write_json(folder / CARD, card)
    logging.info("%s: %.2fM parameters as encoder: %s", output, card["cost"]["params"] / 1e6, conf["encoder"])
    return card


def _card(supernet: Supernet, subnet: Subnet, conf: Mapping[str, Any], difference: Optional[float]) -> dict[str, Any]:
    """What the card of a subnet with this config says, but of its weights. difference: to the slice's output."""
    source = {**supernet.origin(), "max_abs_difference": difference}
    table, alone = supernet.model.component_table(), supernet.encoder.component_table()
    card = make_card(subnet, table, conf["encoder"], conf["encoder_conf"], conf["token_list"], source, alone)
    trained = _without_input_size(supernet.encoder.extracted_conf(subnet))
    return {**card, TRAINED_AS: {"encoder": supernet.encoder.name, "encoder_conf": trained}}


def calibration_fronts(
    model: TodmModel, encoder: SupernetEncoder, features: Iterable[Tensor]
) -> Iterator[SubsampledFeatures]:
    """Utterances (T, F), one by one, as the blocks of ``encoder`` get them. One that is too short for a frame is left out.

    Raises UserError when no other is there.
    """
    used = 0
    for utterance in features:
        if len(utterance) < encoder.shortest():
            continue
        used += 1
        lengths = torch.tensor([len(utterance)])
        normalised = utterance.unsqueeze(0).clone()  # GlobalMVN works in place
        if model.normalize is not None:
            normalised, lengths = model.normalize(normalised, lengths)
        if model.preencoder is not None:
            normalised, lengths = model.preencoder(normalised, lengths)
        yield encoder.subsample(normalised, lengths)
    if not used:
        raise UserError("--calibrate: no utterance is long enough for a frame of the encoder")


def _small_config(supernet: Supernet, subnet: Subnet, final: Path) -> dict[str, Any]:
    """The config of the small model, which will be in ``final``; files are named as the supernet's config names them."""
    conf = {key: value for key, value in supernet.config.items() if key not in OF_THE_TRAINING}
    transducer = supernet.model.use_transducer_decoder
    stock = None if transducer else supernet.encoder.stock_conf(subnet)
    conf["encoder"] = supernet.encoder.stock_name if stock is not None else supernet.encoder.name
    conf["encoder_conf"] = _without_input_size(stock if stock is not None else supernet.encoder.extracted_conf(subnet))
    conf["model"] = "todm" if transducer else "espnet"
    if transducer:
        conf["subnet_trainer"] = "single"
    kept = ("autocast",) if transducer else ()  # for fine-tuning; ESPnet's own model knows no such option
    model_conf = supernet.config.get("model_conf", {})
    conf["model_conf"] = {key: value for key, value in model_conf.items() if key not in OPTIONS or key in kept}
    conf["output_dir"] = str(final)
    return conf


def _without_input_size(conf: Mapping[str, Any]) -> dict[str, Any]:
    """ESPnet passes it by itself."""
    return {key: value for key, value in conf.items() if key != "input_size"}


@torch.no_grad()
def _largest_difference(supernet: Supernet, subnet: Subnet, model: torch.nn.Module) -> float:
    """Largest absolute difference between the outputs of the small model's encoder and of the slice, on fixed noise."""
    noise = torch.randn(1, 200, supernet.encoder.input_size, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([200])
    between = supernet.model.between(subnet.name)
    expected = supernet.encoder.blocks(supernet.encoder.subsample(noise, lengths), subnet, between=between)
    feeding = {"ctc": model.ctc} if supernet.encoder.interctc_use_conditioning else {}
    encoded = model.encoder(noise, lengths, **feeding)[0]  # type: ignore[operator]
    encoded = encoded[0] if isinstance(encoded, tuple) else encoded  # beside what was taken between blocks
    difference = float((encoded - expected).abs().max())
    if not difference <= TOLERANCE:
        raise RuntimeError(f"subnet {subnet.name}: the extracted model differs from the slice by {difference:.3g}")
    return difference
