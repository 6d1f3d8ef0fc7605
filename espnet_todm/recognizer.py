"""The Python interface: a trained supernet and the small models extracted from it. Both transcribe speech.

Use ``espnet_todm.load_supernet`` and ``espnet_todm.load_model`` to create them. Models run on the CPU in float32.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import numpy as np
import soundfile
import torch
from torch import Tensor

from espnet_todm.card import CARD, read_card
from espnet_todm.components import FULL
from espnet_todm.decode.decode import Decoder
from espnet_todm.decode.features import check_audio, read_features, sampling_rate
from espnet_todm.decode.options import SearchOptions
from espnet_todm.deploy.extract import extract, load_supernet, pick_subnets
from espnet_todm.deploy.folder import CHECKPOINT
from espnet_todm.deploy.runtime.fbank import fbank
from espnet_todm.errors import UserError, one_line
from espnet_todm.espnet.config_inheritance import CONFIG, best_model, read_config
from espnet_todm.espnet.load import load_extracted
from espnet_todm.util.acoustics import SAMPLING_RATE
from espnet_todm.util.files import PathLike

Speech = Union[str, Path, np.ndarray]


class Size(NamedTuple):
    """The cost of a size: parameters of the whole model, and FLOPs per second of speech."""

    params: int
    flops: int


class Model:
    """A small model in a folder, written by extraction or fine-tuning.

    Attributes:
        card: the content of card.json, such as ``card["cost"]["params"]``.
        config_file, weights_file: the two files for ESPnet's ``Speech2Text``.
    """

    def __init__(
        self,
        folder: PathLike,
        search: Optional[SearchOptions] = None,
        owned: Optional[tempfile.TemporaryDirectory[str]] = None,
    ) -> None:
        """Load the model in a folder.

        Args:
            folder: what extraction or fine-tuning wrote.
            search: the decoding options; greedy by default.
            owned: a temporary directory around the folder, which is removed with this object.

        Raises:
            UserError: the folder holds no such model.
        """
        path = Path(folder)
        self.card = read_card(path / CARD)
        self.config_file, self.weights_file = str(path / CONFIG), str(path / CHECKPOINT)
        model, self.config = load_extracted(path)
        self._decoder = Decoder(model, self.config, search)
        self._owned = owned

    def transcribe(self, speech: Speech) -> str:
        """Transcribe an audio file, or samples (N,), floats in [-1, 1]: one channel at the model's sampling rate.

        Raises UserError for other audio, and for a file that cannot be read.
        """
        return self._decoder([self.features(speech)])[0]

    def features(self, speech: Speech) -> Tensor:
        """The model's input for the same kinds of speech, float32: filterbanks (T, F), or samples (N,) if it has a
        front end.
        """
        rate = sampling_rate(self.config) or SAMPLING_RATE
        samples = speech if isinstance(speech, np.ndarray) else _read(speech, rate)
        if self.config.get("frontend"):
            return torch.as_tensor(samples, dtype=torch.float32)
        return torch.from_numpy(fbank(samples, int(self.config["input_size"])))


class Supernet:
    """A trained supernet: its sizes, and the models that can be extracted from it."""

    def __init__(self, experiment: PathLike, checkpoint: Optional[PathLike] = None) -> None:
        """See :func:`espnet_todm.load_supernet`."""
        config = Path(experiment) / CONFIG if Path(experiment).is_dir() else Path(experiment)
        weights = checkpoint if checkpoint is not None else config.parent / best_model(read_config(config))
        self._supernet = load_supernet(config, weights)
        self._models: dict[str, Model] = {}

    @property
    def sizes(self) -> dict[str, Size]:
        """Name -> cost of each size of the configuration, including the largest, ``full``."""
        table = self._supernet.model.component_table()
        costs = {name: table.cost(subnet) for name, subnet in self._supernet.encoder.sizes.items()}
        return {name: Size(round(cost.params), round(cost.flops)) for name, cost in costs.items()}

    def subnet(self, which: str, output: Optional[PathLike] = None, calibrate: Optional[PathLike] = None) -> Model:
        """Extract the smaller model of one subnet.

        Args:
            which: a size, the path of a card, or a budget: "10M" or "params=10M" of parameters, "flops=1.2G" and
                "latency=0.02" (seconds) per second of speech.
            output: folder for the model, as extraction writes it; None for a temporary one that lives as long as the
            returned object.
            calibrate: feats.scp or wav.scp to estimate batch norm's statistics on, which budgets need with batch norm.

        Raises:
            UserError: no such size or card, a budget that cannot be met, or calibration that is needed and not given.
        """
        name, given, amount = which.partition("=")
        known = name in self._supernet.encoder.sizes or which.endswith(".json")
        criterion, amount = (name, amount) if given else ("params", which)
        if not known and criterion not in ("params", "flops", "latency"):
            raise UserError(f"{which!r} is no budget; allowed: params=..., flops=..., latency=...")
        asked = {"sizes": [which]} if known else {criterion: [amount]}
        (subnet,) = pick_subnets(self._supernet, **asked)
        utterances = (x for _, x in read_features(calibrate)) if calibrate is not None else None
        kept = tempfile.TemporaryDirectory(prefix="espnet_todm_") if output is None else None
        folder = Path(kept.name) / subnet.name if kept is not None else Path(str(output))
        extract(self._supernet, subnet, folder, utterances)
        return Model(folder, owned=kept)

    def transcribe(self, speech: Speech) -> str:
        """Transcribe with the largest size; see :meth:`Model.transcribe`."""
        if FULL not in self._models:
            self._models[FULL] = self.subnet(FULL)
        return self._models[FULL].transcribe(speech)


def _read(path: Union[str, Path], rate: int) -> np.ndarray:
    """Samples (N,) of an audio file. Raises UserError if it cannot be read or is not one channel of ``rate``."""
    try:
        samples, found = soundfile.read(path, dtype="float32")
    except Exception as error:
        raise UserError(f"{path}: cannot be read as audio ({one_line(error)})") from None
    check_audio(path, "the file", (found, 1 if samples.ndim == 1 else samples.shape[1]), (rate, 1))
    return np.asarray(samples)


@cache  # what a task reads is checked once
def speech2text() -> Any:
    """ESPnet's class, with this package's names registered and its input files checked first."""
    from espnet2.bin.asr_inference import Speech2Text
    from espnet2.tasks.lm import LMTask

    from espnet_todm.espnet.registry import check_model_files

    check_model_files(LMTask)
    return Speech2Text
