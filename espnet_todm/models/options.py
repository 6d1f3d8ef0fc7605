"""Checks of the options of ``model: todm``. The encoder checks its own options."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Optional

from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_todm.encoders.supernet import SupernetEncoder
from espnet_todm.errors import UserError
from espnet_todm.models.autocast import DTYPES
from espnet_todm.models.interctc import check_interctc
from espnet_todm.util.checks import check_number, refusal
from espnet_todm.util.compat import is_classifier
from espnet_todm.util.vocabulary import check_marks

if TYPE_CHECKING:
    from espnet_todm.models.todm import TodmModel

OUTPUT_LAYERS = ("shared", "per_size")
# Options in addition to ESPnet's own. An extracted model does not need them.
OPTIONS = (
    *("autocast", "output_layers", "transducer_conf", "distil_attention", "error_rates_every", "compile"),
    "average_weights",
)
# Part -> allowed ESPnet classes. The others need a different computation, or build a pretrained model without subnets.
ALLOWED_PARTS = {
    "preencoder": ("linear",),
    "postencoder": ("length_adaptor",),
    "decoder": (
        *("transformer", "lightweight_conv", "lightweight_conv2d", "dynamic_conv", "dynamic_conv2d", "rnn", "s4"),
        *("transducer", "todm_stateless"),
    ),
}
LIGHTNING = "espnet2.train.lightning_espnet_model"


def check_configuration(args: Any, encoders: Mapping[str, type]) -> None:
    """Raises UserError, in one line, for all parts of a configuration that ``model: todm`` does not allow, with the errors
    of its encoder. Call it before anything is built, since ESPnet would download some of the parts.

    args: ESPnet's options, or those of an experiment. encoders: name -> class of all encoders that ESPnet can choose.
    """
    problems = [*_refused_parts(args)]
    encoder = encoders.get(str(getattr(args, "encoder", None)).lower(), object)
    if not issubclass(encoder, SupernetEncoder):
        allowed = ", ".join(name for name, cls in encoders.items() if issubclass(cls, SupernetEncoder))
        problems.append(
            f"encoder: {getattr(args, 'encoder', None)!r} is no supernet for model: todm; allowed: {allowed}"
        )
    elif problems:
        problems += refusal(lambda: encoder(input_size=80, **(getattr(args, "encoder_conf", None) or {})))
    if problems:
        raise UserError("; ".join(problems))


def _refused_parts(args: Any) -> Iterable[str]:
    for part, allowed in ALLOWED_PARTS.items():
        name = getattr(args, part, None)
        if name is not None and name.lower() not in allowed:
            yield f"{part}: {name!r} is not possible in model: todm; allowed: {', '.join(allowed)}"
    durations = (getattr(args, "model_conf", None) or {}).get("transducer_multi_blank_durations")
    if durations:
        yield f"transducer_multi_blank_durations: {durations} are not possible in model: todm; leave them out"
    yield from _refused_labels(getattr(args, "model_conf", None) or {})
    ctc_type = (getattr(args, "ctc_conf", None) or {}).get("ctc_type", "builtin")
    if not ctc_type.startswith("builtin"):
        yield f"ctc_type: {ctc_type!r} is not possible in model: todm; allowed: builtin, builtin2"
    if LIGHTNING in sys.modules and hasattr(args, "lightning_conf"):
        yield "use_lightning: Lightning does not tell model: todm its step; train with use_lightning false (bin.asr_train)"


def _refused_labels(conf: Mapping[str, Any]) -> Iterable[str]:
    if conf.get("aux_ctc"):
        yield f"aux_ctc: {conf['aux_ctc']!r} is not possible in model: todm; all CTC is of the text: leave it out"


def check_options(
    autocast: Optional[str],
    output_layers: str,
    distil_attention: Optional[bool],
    error_rates_every: int,
    compile: bool,
    average_weights: Optional[float],
    espnet: Mapping[str, Any],
) -> None:
    """Raises UserError, in one line, for all options of ``model_conf`` that a supernet does not allow."""
    if not isinstance(espnet.get("encoder"), SupernetEncoder):
        raise UserError("model: todm needs a supernet encoder, such as encoder: todm_conformer")
    known = list(inspect.signature(ESPnetASRModel).parameters)
    problems = [
        f"model_conf: unknown key {key!r} for todm; allowed: {', '.join(OPTIONS)}, {', '.join(known)}"
        for key in espnet
        if key not in known
    ]
    check_marks(espnet.get("token_list", ()))
    problems += _refused_labels(espnet)
    problems += refusal(lambda: check_number("ctc_weight", espnet.get("ctc_weight", 0.5), at_least=0, at_most=1))
    problems += refusal(
        lambda: check_number("interctc_weight", espnet.get("interctc_weight", 0.0), at_least=0, below=1)
    )
    problems += refusal(lambda: check_number("error_rates_every", error_rates_every, at_least=1, whole=True))
    if autocast is not None and autocast not in DTYPES:
        problems.append(f"autocast: {autocast!r} is unknown; allowed: {', '.join(DTYPES)} or leave it out")
    if output_layers not in OUTPUT_LAYERS:
        problems.append(f"output_layers: {output_layers!r} is unknown; allowed: {', '.join(OUTPUT_LAYERS)}")
    if distil_attention not in (None, True, False):
        problems.append(f"distil_attention: {distil_attention!r} must be true or false")
    if compile not in (True, False):
        problems.append(f"compile: {compile!r} must be true or false")
    if average_weights is not None:
        problems += refusal(lambda: check_number("average_weights", average_weights, above=0, at_most=1))
    if problems:
        raise UserError("; ".join(problems))


def check_outputs(
    model: TodmModel,
    transducer: bool,
    output_layers: str,
    transducer_conf: Optional[Mapping[str, Any]],
    distil_attention: Optional[bool],
) -> None:
    """Raises UserError if this package cannot train an output of the model, or if an option needs an absent output."""
    if is_classifier(model) or (model.ctc is not None and not model.ctc.ctc_type.startswith("builtin")):
        raise UserError("model: todm trains CTC (ctc_type: builtin), attention and transducer models only")
    if transducer_conf and not transducer:
        raise UserError("transducer_conf: is for transducers; set decoder: transducer or decoder: todm_stateless")
    if distil_attention and (transducer or model.decoder is None):
        raise UserError("distil_attention: is for models with an attention decoder; leave it out")
    if output_layers == "per_size" and model.ctc is None and not transducer:
        raise UserError("output_layers: 'per_size' needs a CTC output or a transducer, but ctc_weight is 0")
    check_interctc(model)
