"""The parity gate's steps for a streaming export: whole utterances under the chunks' mask are what training had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from espnet_todm.deploy.parity.short import compare_short
from espnet_todm.deploy.parity.speech import Speech
from espnet_todm.deploy.parity.steps import FP32, Gate, hear
from espnet_todm.deploy.runtime.opening import open_onnx
from espnet_todm.deploy.runtime.sherpa_subprocess import transcribe_in_subprocess
from espnet_todm.deploy.runtime.streaming import StreamingOnnx
from espnet_todm.deploy.runtime.streaming_torch import StreamingTorch
from espnet_todm.deploy.runtime.torch import TorchCtc
from espnet_todm.encoders.chunks import Chunk
from espnet_todm.encoders.stack import StackedEncoder
from espnet_todm.espnet.load import load_extracted
from espnet_todm.util.files import PathLike

MASKED, STREAMED = "PyTorch under the chunks' mask", "PyTorch chunk by chunk"
ALONE, FULL = f"{MASKED}, without the tail", "PyTorch, full context"


def compare_streaming(
    gate: Gate, subnet: PathLike, exported: PathLike, speech: Sequence[Speech], precisions: Sequence[str], threads: int
) -> None:
    """PyTorch masked == PyTorch streaming == onnxruntime chunk by chunk == sherpa-onnx's online recognizer.

    Each of ours gets the utterance's samples and adds the tail by itself; sherpa-onnx gets it as its user is told to. Beside
    the word error rates of the chunks stand those of the utterance alone, without a tail, under the mask and with full
    context: what training had.
    """
    runtimes = {precision: cast(StreamingOnnx, open_onnx(exported, precision, threads)) for precision in precisions}
    first = runtimes[precisions[0]]
    model, config = load_extracted(subnet)
    encoder = cast(StackedEncoder, model.encoder)
    masked, streamed = TorchCtc(model, config, threads), StreamingTorch(model, config, threads, first.chunk)
    waves = [one.samples for one in speech]
    features = [streamed.features(samples) for samples in waves]
    encoder.decode_chunk = Chunk(*first.chunk)
    reference = hear(MASKED, masked, features)
    gate.rate(MASKED, reference.texts)
    gate.everything(hear(STREAMED, streamed, features), reference, exact=True)
    for precision, runtime in runtimes.items():
        heard = hear(f"onnxruntime {precision}", runtime, features)
        gate.exported(precision, heard, reference, transcribe_in_subprocess(exported, precision, threads, waves))
        if precision == FP32:
            compare_short(gate, exported, heard.name, runtime, waves[0], threads)
    gate.rate(ALONE, [masked.transcribe(samples) for samples in waves], reference.texts)
    encoder.decode_chunk = None
    gate.rate(FULL, [masked.transcribe(samples) for samples in waves], reference.texts)
