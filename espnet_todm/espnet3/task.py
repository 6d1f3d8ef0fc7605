"""``task: espnet_todm.espnet3.task.SupernetTask`` in a ``training.yaml`` of ESPnet 3, which then builds supernets."""

from __future__ import annotations

import argparse
from typing import Any

from espnet2.tasks.asr import ASRTask

from espnet_todm.espnet.registry import register


class SupernetTask(ASRTask):
    """ESPnet's ASR task with this package's encoders, models and subnet trainers.

    ESPnet 3 asks a task for its default options, updates them with the block ``model`` of its configuration, and has the
    model built from them. That block may have all options of ESPnet 2 that are about the model, and ``subnet_trainer``,
    ``subnet_trainer_conf`` and ``seed``.
    """

    @classmethod
    def get_parser(cls) -> argparse.ArgumentParser:
        register()
        parser: argparse.ArgumentParser = super().get_parser()
        return parser

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> Any:
        """Raises UserError, in one line, for options that a supernet does not allow."""
        register()
        return super().build_model(args)
