"""Examples of how to run a packed model, as the README of a size shows them: Python that works where the files lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_FEATURES = """import soundfile
from lhotse import Fbank, FbankConfig

samples, rate = soundfile.read("speech.wav", dtype="float32")  # one channel
speech = Fbank(FbankConfig(sampling_rate=rate, num_filters={bins})).extract(samples, rate)
"""
_AUDIO = """import soundfile

speech, rate = soundfile.read("speech.wav", dtype="float32")  # one channel
"""
_ESPNET = """from espnet2.bin.asr_inference import Speech2Text
from espnet2.main_funcs.pack_funcs import unpack

recogniser = Speech2Text.from_pretrained(**unpack("{name}.zip", "{name}_unpacked"), {options})
print(recogniser(speech)[0][0])
"""
_PLAIN = """import torch

from espnet_todm.decode.decode import Decoder
from espnet_todm.espnet.load import load_extracted

decoder = Decoder(*load_extracted("{name}"))  # checks the weights against card.json
print(decoder([torch.as_tensor(speech)])[0])
"""


def espnet_example(card: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """How ESPnet runs the packed archive ``<name>.zip``, which is beside the folder of the model."""
    register = "" if _is_stock(card, config) else "import espnet_todm\n\nespnet_todm.register()\n"
    code = _input(config) + "\n" + register + _ESPNET.format(name=card["name"], options=_search(config))
    return (
        f'`Speech2Text.from_pretrained("{card["name"]}.zip", ...)` does the same where `espnet_model_zoo` is installed.\n'
        f"ESPnet unpickles the weights in the archive.\n\n{_block(code)}"
    )


def plain_example(card: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """How this package runs the folder of the model, from its safetensors."""
    return _block(_input(config) + "\n" + _PLAIN.format(name=card["name"]))


def _is_stock(card: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    return not card["encoder"].startswith("todm_") and config.get("model") != "todm"


def _input(config: Mapping[str, Any]) -> str:
    bins = config.get("input_size")
    return _FEATURES.format(bins=bins) if bins else _AUDIO


def _search(config: Mapping[str, Any]) -> str:
    """Options of Speech2Text: those of the model's kind."""
    if config.get("model") == "todm":  # a transducer
        return "beam_size=5"
    return "beam_size=10, ctc_weight=0.3" if config.get("decoder") else "beam_size=10, ctc_weight=1.0"


def _block(code: str) -> str:
    return f"```python\n{code}```\n"
