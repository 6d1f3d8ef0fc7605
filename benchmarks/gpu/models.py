"""Models from the recipes' YAML files.

ESPnet's task would build them, but it imports twenty packages, some compiled, that a GPU machine without network may lack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import torch
from espnet2.asr.ctc import CTC

from espnet_todm.decoders.stateless import StatelessDecoder
from espnet_todm.encoders.known import encoders
from espnet_todm.espnet.config_inheritance import merged, read_config
from espnet_todm.models.spec_augment import SpecAugmentByLength
from espnet_todm.models.todm import TodmModel
from espnet_todm.trainers.known import trainers
from espnet_todm.util.acoustics import MEL_BINS

CONF = Path(__file__).parent / "conf"
BFLOAT16 = "bfloat16"
_PARTS = ("frontend", "specaug", "normalize", "preencoder", "postencoder", "decoder", "joint_network")


def read(name: str, changes: Optional[Mapping[str, Any]] = None) -> dict[str, Any]:
    """The options of ``conf/<name>.yaml`` with ``changes`` laid over them."""
    return merged(read_config(CONF / f"{name}.yaml"), changes or {})


def build(config: Mapping[str, Any], tokens: Sequence[str], device: torch.device) -> TodmModel:
    """The supernet of a configuration with its subnet trainer, in mixed precision. Its seed is ``config["seed"]`` or 1."""
    seed = config.get("seed", 1)
    torch.manual_seed(seed)
    encoder = encoders()[config["encoder"]](MEL_BINS, **config["encoder_conf"])
    parts: dict[str, Any] = dict.fromkeys(_PARTS)
    if config.get("specaug") == "todm_specaug":
        parts["specaug"] = SpecAugmentByLength(**config["specaug_conf"])
    if config.get("decoder") == "todm_stateless":
        parts["decoder"] = StatelessDecoder(len(tokens), **config["decoder_conf"])
    model = TodmModel(
        vocab_size=len(tokens),
        token_list=list(tokens),
        encoder=encoder,
        ctc=CTC(len(tokens), encoder.output_size()),
        autocast=BFLOAT16,
        **parts,
        **config["model_conf"],
    )
    if parts["decoder"] is not None:
        model.join(model.make_joint(config.get("joint_net_conf") or {}))
    trainer = trainers()[config["subnet_trainer"]]
    model.subnet_trainer = trainer(model, **{"seed": seed, **config.get("subnet_trainer_conf", {})})
    return model.to(device)
