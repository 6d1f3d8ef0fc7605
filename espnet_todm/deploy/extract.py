"""Extract subnets of a trained supernet as small ordinary models."""

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
from espnet_todm.encoders.calibration import calibrate, needs_calibration
from espnet_todm.encoders.passes import SubsampledFeatures
from espnet_todm.encoders.supernet import SupernetEncoder
from espnet_todm.errors import UserError
from espnet_todm.espnet.load import build_model, read_trained_config, read_weights
from espnet_todm.models.options import OPTIONS
from espnet_todm.models.todm import TodmModel
from espnet_todm.sizes import fit_budget
from espnet_todm.util.files import PathLike, atomic_directory, hash_file, write_json
from espnet_todm.util.units import parse_amount

# Options of a supernet's training config that a small model does not use.
OF_THE_TRAINING = ("subnet_trainer", "subnet_trainer_conf", "init_param", "model", "model_conf")
# The extracted model and the slice run the same operations on the same numbers; only the order of sums may differ.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Supernet:
    """A trained supernet, its config and its source: paths of config and checkpoint, and the checkpoint's SHA-256."""

    model: TodmModel
    config: dict[str, Any]
    source: dict[str, Any]

    @property
    def encoder(self) -> SupernetEncoder:
        return self.model.encoder

    def origin(self) -> dict[str, Any]:
        """The source, and the machine on which latencies were measured if the encoder has them."""
        measured = self.encoder.latency
        return {**self.source, "latency_machine": dict(measured.machine)} if measured is not None else self.source


def load_supernet(config: PathLike, checkpoint: PathLike) -> Supernet:
    """Load a trained supernet. A stock ESPnet model with an encoder in STOCK loads as a supernet of one size, ``full``.

    Raises UserError when config and checkpoint do not match or the model is not a supernet.
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
    """Subnets by name or card file, and one for each budget of parameters ("10M"), FLOPs per second of speech ("1.2G") or
    encoder seconds per second of speech ("0.02"). Without arguments: all sizes. Raises UserError."""
    table, encoder = supernet.model.component_table(), supernet.encoder
    shape = encoder.share_shape
    picked = [encoder.find_subnet(name) for name in sizes]
    for criterion, budgets in (("params", params), ("flops", flops), ("latency", latency)):
        picked += [fit_budget(f"{criterion}_{text}", table, criterion, parse_amount(text), shape) for text in budgets]
    return picked or [encoder.find_subnet(name) for name in encoder.sizes]


def extract(
    supernet: Supernet, subnet: Subnet, output: PathLike, calibration: Optional[Iterable[Tensor]] = None
) -> dict[str, Any]:
    """Write one subnet to the folder ``output``, and return its card.

    The folder holds model.safetensors, model.pth, config.yaml and the files that the config names. ESPnet's tools load
    it. The config names ESPnet's encoder, such as ``encoder: conformer``, if the subnet has a stock form, and else the
    supernet's encoder. A transducer stays ``model: todm``: ESPnet's model needs a loss that no package index has.

    Args:
        calibration: feature tensors (T, F) for batch norm statistics. Needed if the convolution has batch norm and the
            subnet is not a named size: only named sizes gather statistics during training.

    Raises:
        UserError: calibration data are needed and not given.
        RuntimeError: the outputs of the small model and of the slice differ (a defect of this package).
    """
    small = supernet.encoder.extract(subnet)
    if not needs_calibration(supernet.encoder, subnet):
        calibration = None
    elif calibration is None:
        raise UserError(f"subnet {subnet.name}: its batch norm needs data to be recalibrated; give --calibrate SCP")
    else:
        utterances = calibration_fronts(supernet.model, small, calibration)
        calibrate(small, utterances, partial(supernet.model.between, FULL))
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
    """The card of a subnet without the entry for its weights. difference: largest difference to the slice's output."""
    source = {**supernet.origin(), "max_abs_difference": difference}
    table, alone = supernet.model.component_table(), supernet.encoder.component_table()
    card = make_card(subnet, table, conf["encoder"], conf["encoder_conf"], conf["token_list"], source, alone)
    trained = _without_input_size(supernet.encoder.extracted_conf(subnet))
    return {**card, TRAINED_AS: {"encoder": supernet.encoder.name, "encoder_conf": trained}}


def calibration_fronts(
    model: TodmModel, encoder: SupernetEncoder, features: Iterable[Tensor]
) -> Iterator[SubsampledFeatures]:
    """Yield the subsampled features of each utterance: (T, F), or samples (N,) for a model with a front end. Utterances too
    short for one encoder frame are skipped.

    Raises UserError when no utterance is long enough.
    """
    used = 0
    for utterance in features:
        lengths = torch.tensor([len(utterance)])
        normalised = utterance.unsqueeze(0).clone()  # GlobalMVN works in place
        if model.frontend is not None:
            normalised, lengths = model.frontend(normalised, lengths)
        if int(lengths) < encoder.shortest():
            continue
        used += 1
        if model.normalize is not None:
            normalised, lengths = model.normalize(normalised, lengths)
        if model.preencoder is not None:
            normalised, lengths = model.preencoder(normalised, lengths)
        yield encoder.subsample(normalised, lengths)
    if not used:
        raise UserError("--calibrate: no utterance is long enough for a frame of the encoder")


def _small_config(supernet: Supernet, subnet: Subnet, final: Path) -> dict[str, Any]:
    """The config of the small model, whose final folder is ``final``. It names files as the supernet's config does."""
    conf = {key: value for key, value in supernet.config.items() if key not in OF_THE_TRAINING}
    transducer = supernet.model.use_transducer_decoder
    stock = None if transducer else supernet.encoder.stock_conf(subnet)
    conf["encoder"] = supernet.encoder.stock_name if stock is not None else supernet.encoder.name
    conf["encoder_conf"] = _without_input_size(stock if stock is not None else supernet.encoder.extracted_conf(subnet))
    conf["model"] = "todm" if transducer else "espnet"
    if transducer:
        conf["subnet_trainer"] = "single"
    kept = ("autocast",) if transducer else ()  # for fine-tuning; ESPnet's own model has no such option
    model_conf = supernet.config.get("model_conf", {})
    conf["model_conf"] = {key: value for key, value in model_conf.items() if key not in OPTIONS or key in kept}
    conf["output_dir"] = str(final)
    return conf


def _without_input_size(conf: Mapping[str, Any]) -> dict[str, Any]:
    """ESPnet adds ``input_size`` itself."""
    return {key: value for key, value in conf.items() if key != "input_size"}


@torch.no_grad()
def _largest_difference(supernet: Supernet, subnet: Subnet, model: torch.nn.Module) -> float:
    """Largest absolute difference between outputs of the small model's encoder and of the slice, on fixed noise."""
    noise = torch.randn(1, 200, supernet.encoder.input_size, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([200])
    between = supernet.model.between(subnet.name)
    expected = supernet.encoder.blocks(supernet.encoder.subsample(noise, lengths), subnet, between=between)
    feeding = {"ctc": model.ctc} if supernet.encoder.interctc_use_conditioning else {}
    encoded = model.encoder(noise, lengths, **feeding)[0]  # type: ignore[operator]
    encoded = encoded[0] if isinstance(encoded, tuple) else encoded  # a pair with the intermediate outputs
    difference = float((encoded - expected).abs().max())
    if not difference <= TOLERANCE:
        raise RuntimeError(f"subnet {subnet.name}: the extracted model differs from the slice by {difference:.3g}")
    return difference
