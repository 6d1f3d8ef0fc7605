"""How stock sherpa-onnx runs an export format: its recognizer, and programs in Python and C that transcribe a file.

The programs stand beside the files of a release (:mod:`espnet_todm.deploy.release`) and need nothing of this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from string import Template
from typing import Any, NamedTuple

from espnet_todm.deploy.onnx.folder import TOKENS
from espnet_todm.util.acoustics import SAMPLING_RATE
from espnet_todm.util.optional import needed

PYTHON, C = "recognize.py", "recognize.c"  # names of the programs


class _Source(Template):
    """Source text with places such as @tail_seconds to fill in."""

    delimiter = "@"


class _Decoding(NamedTuple):
    """What a program does with the samples of a file, in each language."""

    python: str
    c: str


_DECODING = {
    "Offline": _Decoding(
        python="""\
stream.accept_waveform(rate, samples)
recognizer.decode_stream(stream)
print(stream.result.text)
""",
        c="""\
  SherpaOnnxAcceptWaveformOffline(stream, wave->sample_rate, wave->samples, wave->num_samples);
  SherpaOnnxDecodeOfflineStream(recognizer, stream);
  const SherpaOnnxOfflineRecognizerResult *result = SherpaOnnxGetOfflineStreamResult(stream);
""",
    ),
    "Online": _Decoding(
        python="""\
stream.accept_waveform(rate, samples)  # or piece by piece, as they are recorded
# A chunk is computed when it is complete: after the last sample the model needs silence.
stream.accept_waveform(rate, np.zeros(round(@tail_seconds * rate), dtype=np.float32))
stream.input_finished()
while recognizer.is_ready(stream):
    recognizer.decode_stream(stream)
print(recognizer.get_result(stream))
""",
        c="""\
  /* All at once here; a device gives the samples piece by piece, as they are recorded. */
  SherpaOnnxOnlineStreamAcceptWaveform(stream, wave->sample_rate, wave->samples, wave->num_samples);
  /* A chunk is computed when it is complete: after the last sample the model needs silence. */
  int32_t tail = (int32_t)(@tail_seconds * wave->sample_rate + 0.5);
  float *silence = calloc(tail, sizeof(float));
  SherpaOnnxOnlineStreamAcceptWaveform(stream, wave->sample_rate, silence, tail);
  free(silence);
  SherpaOnnxOnlineStreamInputFinished(stream);
  while (SherpaOnnxIsOnlineStreamReady(recognizer, stream)) {
    SherpaOnnxDecodeOnlineStream(recognizer, stream);
  }
  const SherpaOnnxOnlineRecognizerResult *result = SherpaOnnxGetOnlineStreamResult(recognizer, stream);
""",
    ),
}
_PYTHON = '''\
"""Transcribe a WAV file that has one channel of 16-bit samples.

pip install sherpa-onnx numpy
python @name speech.wav
"""

import sys
import wave
from pathlib import Path

import numpy as np
import sherpa_onnx

HERE = Path(__file__).parent

if len(sys.argv) != 2:
    sys.exit("usage: python @name speech.wav")
recognizer = sherpa_onnx.@{kind}Recognizer.@maker(
@arguments
)
with wave.open(sys.argv[1]) as file:
    if (file.getnchannels(), file.getsampwidth()) != (1, 2):
        sys.exit(f"{sys.argv[1]}: needed: one channel of 16-bit samples")
    rate = file.getframerate()
    samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / 32768
stream = recognizer.create_stream()
@decoding'''
_C = """\
/* Transcribe a WAV file that has one channel of 16-bit samples. Run it in this folder, where the model is.
 *
 * SHERPA is a folder with sherpa-onnx's include/ and lib/. That of the Python package has both:
 *
 *   SHERPA=$(python -c "import sherpa_onnx; print(sherpa_onnx.__path__[0])")
 *   cc @name -o recognize -I "$SHERPA/include" -L "$SHERPA/lib" -lsherpa-onnx-c-api -Wl,-rpath,"$SHERPA/lib"
 *   ./recognize speech.wav
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sherpa-onnx/c-api/c-api.h"

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: %s speech.wav\\n", argv[0]);
    return 1;
  }
  const SherpaOnnxWave *wave = SherpaOnnxReadWave(argv[1]);
  if (wave == NULL) {
    fprintf(stderr, "%s: needed: one channel of 16-bit samples\\n", argv[1]);
    return 1;
  }
  SherpaOnnx@{kind}RecognizerConfig config;
  memset(&config, 0, sizeof(config));
@arguments
  const SherpaOnnx@{kind}Recognizer *recognizer = SherpaOnnxCreate@{kind}Recognizer(&config);
  if (recognizer == NULL) {
    fprintf(stderr, "the model cannot be loaded; is this its folder?\\n");
    return 1;
  }
  const SherpaOnnx@{kind}Stream *stream = SherpaOnnxCreate@{kind}Stream(recognizer);
@decoding  printf("%s\\n", result->text);

  SherpaOnnxDestroy@{kind}RecognizerResult(result);
  SherpaOnnxDestroy@{kind}Stream(stream);
  SherpaOnnxDestroy@{kind}Recognizer(recognizer);
  SherpaOnnxFreeWave(wave);
  return 0;
}
"""


@dataclass(frozen=True)
class Stock:
    """The recognizer of a format in sherpa-onnx.

    Args:
        kind: "Offline" for whole utterances, "Online" for chunks: the beginning of the names of sherpa-onnx's classes.
        maker: class method of the Python class that makes the recognizer, such as ``from_zipformer_ctc``.
        fields: the part of the model -> its field in ``model_config`` of the C API, such as ``zipformer_ctc.model``.
        options: other arguments of ``maker``; the fields of ``model_config`` have the same names.
    """

    kind: str
    maker: str
    fields: Mapping[str, str]
    options: Mapping[str, str] = field(default_factory=dict)

    def recognizer(self, arguments: Mapping[str, Any]) -> Any:
        """sherpa-onnx's recognizer, with the model loaded.

        arguments: the file of each part, ``tokens``, ``num_threads`` and ``feature_dim``.
        """
        made_by = getattr(needed("sherpa_onnx"), f"{self.kind}Recognizer")
        return getattr(made_by, self.maker)(**arguments, **self.options)

    def programs(self, files: Mapping[str, str], mel_bins: int, details: Mapping[str, Any]) -> dict[str, str]:
        """Name -> source of the programs.

        files: part -> name of its file, which stands beside the program. details: what the source of this kind needs
        besides, such as ``tail_seconds``.
        """
        names = {**files, "tokens": TOKENS}
        python = [f'    {part}=str(HERE / "{name}"),' for part, name in names.items()]
        python += [f'    {name}="{value}",' for name, value in self.options.items()]
        python += ["    num_threads=1,", f"    feature_dim={mel_bins},"]
        texts = {f"model_config.{self.fields[part]}": name for part, name in files.items()}
        texts.update({f"model_config.{name}": value for name, value in self.options.items()})
        texts.update(
            {"model_config.tokens": TOKENS, "model_config.provider": "cpu", "decoding_method": "greedy_search"}
        )
        numbers = {"model_config.num_threads": 1, "feat_config.sample_rate": SAMPLING_RATE}
        numbers["feat_config.feature_dim"] = mel_bins
        c = [f'  config.{name} = "{text}";' for name, text in texts.items()]
        c += [f"  config.{name} = {number};" for name, number in numbers.items()]
        decoding = _DECODING[self.kind]
        return {
            name: _Source(source).substitute(
                name=name,
                kind=self.kind,
                maker=self.maker,
                arguments="\n".join(arguments),
                decoding=_Source(steps).substitute(details),
            )
            for name, source, arguments, steps in (
                (PYTHON, _PYTHON, python, decoding.python),
                (C, _C, c, decoding.c),
            )
        }
