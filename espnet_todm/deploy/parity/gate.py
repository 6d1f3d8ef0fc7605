"""The parity gate: an exported model must give the same results in its runtime as in training.

The gate runs real utterances through the supernet's slice, the extracted model, onnxruntime and sherpa-onnx. It compares
features, encoder outputs, posteriors, transcripts and word error rates between neighbours in this sequence. The first step
above its limit shows where an error begins.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Optional

from espnet_todm.card import CARD, read_card
from espnet_todm.deploy.forms.registry import open_exported, open_onnx
from espnet_todm.deploy.parity.report import JSON, PAGE, Limits, ParityReport, Step
from espnet_todm.deploy.parity.short import compare_short
from espnet_todm.deploy.parity.speech import Speech
from espnet_todm.deploy.parity.steps import FP32, Arrays, Gate, Heard, hear
from espnet_todm.deploy.runtime.fbank import device_fbank, fbank
from espnet_todm.deploy.runtime.onnx import OnnxRuntime
from espnet_todm.deploy.runtime.sherpa_subprocess import transcribe_in_subprocess
from espnet_todm.deploy.runtime.torch import load_slice
from espnet_todm.errors import UserError
from espnet_todm.espnet.load import load_extracted
from espnet_todm.models.kaldi_fbank import on_features
from espnet_todm.util.acoustics import SAMPLING_RATE
from espnet_todm.util.files import PathLike, hash_file, write_json, write_text
from espnet_todm.util.optional import needed
from espnet_todm.util.processor import cpu_model

SLICE = "supernet slice"
PROBED, PROBED_SECONDS = 5, 10.0  # number of utterances for the comparison of features, and the longest part of each


class ParityError(UserError):
    """A step exceeds its limit. The message names step, utterance and difference on one line; ``report`` has all steps."""

    def __init__(self, report: ParityReport, fault: Step) -> None:
        super().__init__(f"{report.model}: {fault.complaint()}")
        self.report = report


@dataclass(frozen=True)
class Origin:
    """Config and checkpoint of the supernet from which a subnet was extracted, and the subnet's card."""

    config: Path
    checkpoint: Path
    card: Path


def check_parity(
    subnet: PathLike,
    exported: PathLike,
    speech: Sequence[Speech],
    precisions: Sequence[str] = (FP32,),
    origin: Optional[Origin] = None,
    limits: Optional[Limits] = None,
    threads: int = 1,
) -> ParityReport:
    """Compare all runtimes of one model on real utterances, and write parity.json and parity.md into ``exported``.

    Args:
        subnet: folder of the extracted model. exported: folder of its ONNX files.
        precisions: of these files. fp32 must stay within ``limits``; differences of the others are only reported.
        origin: the supernet, to run its slice; None skips the comparison with the slice.

    Raises:
        ParityError: a step exceeds its limit; both files are written anyway.
        UserError: a file is missing or wrong, sherpa-onnx crashes on the model, or a package is missing.
    """
    needed("onnxruntime")
    if not speech:
        raise UserError("parity: there are no utterances to compare on")
    gate = Gate(speech, limits or Limits())
    _compare(gate, on_features(*load_extracted(subnet)), exported, speech, precisions, origin, threads)
    report = _report(str(subnet), speech, gate)
    write_json(Path(exported) / JSON, report.to_json())
    write_text(Path(exported) / PAGE, report.markdown())
    if report.first_fault is not None:
        raise ParityError(report, report.first_fault)
    return report


def _report(model: str, speech: Sequence[Speech], gate: Gate) -> ParityReport:
    return ParityReport(
        model=model,
        utterances=len(speech),
        words=sum(len(one.text.split()) for one in speech),
        seconds=sum(one.seconds for one in speech),
        steps=gate.steps,
        rates=gate.rates,
        versions={name: version(name) for name in ("torch", "onnxruntime", "sherpa-onnx")},
        cpu=cpu_model(),
    )


def find_origin(subnet: PathLike, experiment: Optional[PathLike] = None) -> Optional[Origin]:
    """The supernet that a subnet's card names, or the files of the same names in the folder ``experiment``. None when the
    subnet differs from the slice, because its statistics were recalibrated.

    Raises UserError when a file is missing, or the checkpoint is not the one from which the subnet was extracted.
    """
    card = Path(subnet) / CARD
    source = read_card(card)["supernet"]
    if source.get("max_abs_difference") is None:
        return None
    config, checkpoint = Path(source["config"]), Path(source["checkpoint"])
    if experiment is not None:
        config, checkpoint = Path(experiment) / config.name, Path(experiment) / checkpoint.name
    digest = hash_file(checkpoint.resolve())
    if digest != source["checkpoint_sha256"]:
        raise UserError(f"{checkpoint}: not the checkpoint that {subnet} was taken from; extract it again")
    return Origin(config, checkpoint, card)


def origin_at_hand(subnet: PathLike) -> Optional[Origin]:
    """As :func:`find_origin`, but return None with a warning when the supernet is not on this machine."""
    source = read_card(Path(subnet) / CARD)["supernet"]
    away = [source[key] for key in ("config", "checkpoint") if not Path(source[key]).is_file()]
    if away:
        logging.warning("%s: %s is not here, so the supernet's slice is not compared", subnet, away[0])
        return None
    return find_origin(subnet)


def _compare(
    gate: Gate,
    extracted: tuple[Any, Mapping[str, Any]],
    exported: PathLike,
    speech: Sequence[Speech],
    precisions: Sequence[str],
    origin: Optional[Origin],
    threads: int,
) -> None:
    """Compare all steps in the order of computation, from the supernet to the device. ``extracted``: model and config."""
    form, first = open_exported(exported, precisions[0], threads)
    runtimes = {precisions[0]: first, **{other: open_onnx(exported, other, threads) for other in precisions[1:]}}
    runtime = form.trained(*extracted, first, threads)
    waves = [one.samples for one in speech]
    features = [runtime.features(samples) for samples in waves]
    _compare_features(gate, runtime.mel_bins, waves)
    reference = hear(form.trained_name, runtime, features)
    gate.rate(reference.name, reference.texts)
    if origin is not None:
        supernet = load_slice(origin.config, origin.checkpoint, str(origin.card))
        whole = hear(SLICE, form.trained(*supernet, first, threads), features, reference.paths)
        gate.everything(reference, whole, exact=True)
    for name, other in form.equal(*extracted, first, threads):
        gate.everything(hear(name, other, features, reference.paths), reference, exact=True)
    for precision, onnx in runtimes.items():
        heard = hear(f"onnxruntime {precision}", onnx, features, reference.paths)
        gate.exported(precision, heard, reference, transcribe_in_subprocess(exported, precision, threads, waves))
        if precision == FP32:
            if onnx.pads:
                _compare_padded(gate, heard, onnx, features)
            compare_short(gate, exported, reference.name, runtime, waves[0], threads)
    for name, other in form.told(*extracted, first, threads):
        gate.rate(name, [other.transcribe(samples) for samples in waves], reference.texts)


def _compare_features(gate: Gate, mel_bins: int, waves: Arrays) -> None:
    """Compare sherpa-onnx's features with those of training on the first utterances."""
    begins = [samples[: round(PROBED_SECONDS * SAMPLING_RATE)] for samples in waves[:PROBED]]
    theirs, ours = ([compute(samples, mel_bins) for samples in begins] for compute in (device_fbank, fbank))
    gate.arrays("features", "sherpa-onnx", "training", theirs, ours, gate.limits.features)


def _compare_padded(gate: Gate, heard: Heard, onnx: OnnxRuntime, features: Arrays) -> None:
    """Compare the first graph's output for the shortest utterance alone and in a batch with the longest."""
    lengths = [len(one) for one in features]
    shortest, longest = lengths.index(min(lengths)), lengths.index(max(lengths))
    gate.padded(heard, shortest, onnx.encode_batch([features[shortest], features[longest]])[0])
