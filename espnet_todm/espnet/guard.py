"""Checks before ESPnet's training in each of its processes, and the lock of the experiment's folder."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Optional

from espnet_todm import hook
from espnet_todm.data.archives import refuse_code
from espnet_todm.errors import UserError
from espnet_todm.espnet.checkpoint_files import check_checkpoint
from espnet_todm.espnet.config_inheritance import CONFIG, read_yaml
from espnet_todm.espnet.faults import faults_told, told_by_rank
from espnet_todm.espnet.inputs import check_data, check_statistics
from espnet_todm.espnet.parts import part_errors
from espnet_todm.espnet.task_options import check_training
from espnet_todm.util.files import make_folder
from espnet_todm.util.lifetime import end_forks_with_this, end_with_parent
from espnet_todm.util.stage_marker import exclusive
from espnet_todm.util.vocabulary import (
    check_marks,
    check_record,
    check_same,
    check_tokens,
    trained_tokens,
    write_record,
)

CHECKPOINT = "checkpoint.pth"


@contextmanager
def guarded_training(options: argparse.Namespace) -> Iterator[None]:
    """Context of ESPnet's work in one process. It checks the input files first, reports faults in one line, and ends the
    process with its parent. The process that writes files locks the experiment's folder.

    Raises UserError if another training has locked the folder, a file is damaged, missing or empty, or the tokens differ
    from those of the resumed training.
    """
    with ExitStack() as stack:
        rank = options.distributed and options.multiprocessing_distributed
        if rank:
            stack.enter_context(told_by_rank())
            end_with_parent()
        stack.enter_context(faults_told())
        stack.enter_context(part_errors(options))
        check_training(options)
        refuse_code(pipes=not hook.pipes_allowed)
        check_data(options)
        if options.normalize_conf and options.normalize_conf.get("stats_file"):
            check_statistics(options.normalize_conf["stats_file"])
        if not (options.collect_stats or options.dry_run):
            end_forks_with_this()
            make_folder(options.output_dir)
            for source in options.init_param:
                check_checkpoint(source.split(":")[0])
            if _writes(options):
                stack.enter_context(exclusive(options.output_dir))
                _check_tokens(options)
        yield


def _writes(options: argparse.Namespace) -> bool:
    """Whether this process writes the experiment's files: the only process, or the first rank."""
    from espnet2.train.distributed_utils import get_rank

    return not options.distributed or get_rank(options.dist_rank, options.dist_launcher) in (None, 0)


def _check_tokens(options: argparse.Namespace) -> None:
    """If a training is resumed, compare the tokens with those it used. Record the tokens of this training."""
    folder, tokens = Path(options.output_dir), trained_tokens(options.token_list)
    if str(options.model).lower() == "todm":
        check_marks(tokens)
        check_tokens(tokens)
    if options.resume and (folder / CHECKPOINT).is_file():
        before = _tokens_before(folder / CONFIG)
        if before is not None:
            check_same(before, tokens, str(folder))
        check_record(folder, tokens, options.bpemodel, f"token_list: {options.token_list}")
    write_record(folder, tokens, options.bpemodel)


def _tokens_before(config: Path) -> Optional[list[str]]:
    """The tokens in the config of the resumed training, or None if the config is incomplete: a run may have been killed
    while ESPnet wrote it. ESPnet writes it again, and the record has the tokens too."""
    try:
        tokens = read_yaml(config).get("token_list")
    except (UserError, AttributeError):
        return None
    return tokens if isinstance(tokens, list) else None
