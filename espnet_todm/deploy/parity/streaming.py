"""The parity gate's steps for a streaming export: whole utterances under the chunks' mask are what training had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from espnet_todm.deploy.load import load_extracted
from espnet_todm.deploy.parity.speech import Speech
from espnet_todm.deploy.parity.steps import Gate, hear
from espnet_todm.deploy.runtime.opening import open_onnx
from espnet_todm.deploy.runtime.sherpa_apart import transcribe_apart
from espnet_todm.deploy.runtime.streaming import StreamingOnnx, whole_chunks, with_tail
from espnet_todm.deploy.runtime.streaming_torch import StreamingTorch
from espnet_todm.deploy.runtime.torch import TorchCtc
from espnet_todm.encoders.chunks import Chunk
from espnet_todm.encoders.stack import StackedEncoder
from espnet_todm.files import PathLike

MASKED, STREAMED, FULL = "PyTorch under the chunks' mask", "PyTorch chunk by chunk", "PyTorch, full context"


def compare_streaming(
    gate: Gate, subnet: PathLike, exported: PathLike, speech: Sequence[Speech], precisions: Sequence[str], threads: int
) -> None:
    """PyTorch masked == PyTorch streaming == onnxruntime chunk by chunk == sherpa-onnx's online recognizer.

    All hear the utterances with a second of quiet noise behind, so that each ends in a whole chunk. The word error rate with
    full context stands in the table beside those of the chunks.
    """
    runtimes = {precision: cast(StreamingOnnx, open_onnx(exported, precision, threads)) for precision in precisions}
    first = runtimes[precisions[0]]
    model, config = load_extracted(subnet)
    encoder = cast(StackedEncoder, model.encoder)
    masked, streamed = TorchCtc(model, config, threads), StreamingTorch(model, config, threads, first.chunk)
    waves = [with_tail(one.samples, first.window) for one in speech]
    features = [masked.features(samples) for samples in waves]
    features = [one[: whole_chunks(len(one), first.window, first.shift)] for one in features]
    encoder.decode_chunk = Chunk(*first.chunk)
    reference = hear(MASKED, masked, features)
    gate.rate(MASKED, reference.texts)
    gate.everything(hear(STREAMED, streamed, features), reference, exact=True)
    for precision, runtime in runtimes.items():
        heard = hear(f"onnxruntime {precision}", runtime, features)
        gate.exported(precision, heard, reference, transcribe_apart(exported, precision, threads, waves))
    encoder.decode_chunk = None
    gate.rate(FULL, [masked.text(one) for one in features], reference.texts)
