"""One epoch of ESPnet's trainer in this process, on batches made here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from espnet2.tasks.asr import ASRTask
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.reporter import Reporter

from espnet_todm.espnet.registry import register
from espnet_todm.espnet.trainer import TodmTrainer
from tests.tiny_model import batch

Named = tuple[list[str], dict[str, torch.Tensor]]


def trainer_options(**changes: Any) -> Any:
    """ESPnet's, as its command line has them by default, with changes."""
    register()
    options = ASRTask.get_parser().parse_args(["--output_dir", "-", "--token_list", "-"])
    return TodmTrainer.build_options(type(options)(**{**vars(options), "ngpu": 0, **changes}))


def batches(*broken: bool) -> list[Named]:
    """One batch of two utterances for each; NaN in the first utterance of those that shall be broken."""
    made = []
    for number, is_broken in enumerate(broken):
        of = batch(seed=number)
        if is_broken:
            of.speech[0, 3] = float("nan")
        names = [f"utt{number}a", f"utt{number}b"]
        fields = ("speech", "speech_lengths", "text", "text_lengths")
        made.append((names, {field: getattr(of, field) for field in fields}))
    return made


def train_epoch(
    model: torch.nn.Module,
    iterator: Iterable[Named],
    optimizer: torch.optim.Optimizer,
    scaler: Any = None,
    ranks: bool = False,
    **options: Any,
) -> Reporter:
    """The reporter after this epoch, the first one. ``ranks``: this process is one of those that train the model."""
    reporter = Reporter()
    reporter.set_epoch(1)
    with reporter.observe("train") as part:
        TodmTrainer.train_one_epoch(
            model=model,
            optimizers=[optimizer],
            schedulers=[None],
            iterator=iterator,
            reporter=part,
            scaler=scaler,
            summary_writer=None,
            options=trainer_options(**options),
            distributed_option=DistributedOption(distributed=ranks),
        )
    return reporter
