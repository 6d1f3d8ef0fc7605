"""ESPnet trains from lhotse's cuts: same losses as from its tables, exact resume, errors in one line."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import kaldiio
import pytest
import torch
from espnet2.train.dataset import ESPnetDataset
from espnet2.train.distributed_utils import DistributedOption

from espnet_todm import register
from espnet_todm.bin.asr_train import main
from espnet_todm.errors import UserError
from espnet_todm.espnet.options import parse_training
from espnet_todm.models.todm import TodmModel
from espnet_todm.util.files import read_table
from tests.iterators.made import feature_cuts, joined, write_manifest, write_shar
from tests.tiny_training import arguments, write_config, write_data

SHORT = {"max_duration": 2.5, "num_buckets": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables of a tiny training, and their features as cuts and as a Shar folder."""
    register()
    folder = write_data(tmp_path_factory.mktemp("training") / "data")
    features = dict(kaldiio.load_scp(str(folder / "feats.scp")).items())
    cuts = feature_cuts(folder / "features", features, read_table(folder / "text"))
    write_manifest(cuts, folder / "cuts.jsonl.gz")
    write_shar(cuts, folder / "shar", 3, features="numpy")
    return folder


def options(data: Path, output: Path, *more: str, source: str = "shar", conf: Any = None, **changes: Any) -> list[str]:
    """Arguments of a training that reads ``source``, and validates with it."""
    train = {"train": str(data / source), "valid": str(data / "cuts.jsonl.gz"), **SHORT, **(conf or {})}
    output.mkdir(parents=True, exist_ok=True)
    config = write_config(output / f"given.{os.getpid()}.yaml", iterator="lhotse", iterator_conf=train, **changes)
    tokens = ["--token_list", str(data / "tokens.txt"), "--token_type", "char", "--use_preprocessor", "true"]
    files = ["--config", str(config), "--output_dir", str(output / "exp")]
    return [*files, *tokens, "--ngpu", "0", "--input_size", "20", "--resume", "true", *more]


def weights(output: Path) -> dict[str, torch.Tensor]:
    state = torch.load(output / "exp" / "checkpoint.pth", weights_only=False)
    return state["model"]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("source", ["cuts.jsonl.gz", "shar"])
def test_losses_are_those_of_espnets_tables_on_the_same_batches(data: Path, tmp_path: Path, source: str) -> None:
    from espnet2.tasks.asr import ASRTask

    args = parse_training(options(data, tmp_path, source=source))
    torch.manual_seed(0)
    model = ASRTask.build_model(args).eval()
    batches = list(ASRTask.build_iter_factory(args, DistributedOption(), "train").build_iter(1))
    tables = ESPnetDataset(
        [(str(data / "feats.scp"), "speech", "kaldi_ark"), (str(data / "text"), "text", "text")],
        preprocess=ASRTask.build_preprocess_fn(args, train=True),
    )
    collate = ASRTask.build_collate_fn(args, train=True)
    assert sorted(joined(names for names, _ in batches)) == sorted(read_table(data / "text"))
    for names, tensors in batches:
        expected_names, expected = collate([tables[name] for name in names])
        assert names == expected_names and tensors.keys() == expected.keys()
        assert all(
            torch.equal(tensors[key], expected[key]) and tensors[key].dtype == expected[key].dtype for key in expected
        )
        assert torch.equal(model(**tensors)[0], model(**expected)[0])


@pytest.mark.parametrize("changes", [{}, {"num_iters_per_epoch": 3}], ids=["passes", "num_iters_per_epoch"])
def test_a_resumed_training_equals_the_whole_one(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    main(options(data, tmp_path / "whole", **changes))
    main(options(data, tmp_path / "stopped", "--max_epoch", "1", **changes))
    main(options(data, tmp_path / "stopped", **changes))
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_that_ends_within_an_epoch_goes_on_exactly(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """As kill -9 leaves it: the checkpoint is of the epoch before."""
    changes = {"num_iters_per_epoch": 4, "num_workers": workers}
    main(options(data, tmp_path / "whole", **changes))
    forward, steps = TodmModel.forward, iter(range(100))

    def killed(self: TodmModel, *args: Any, **kwargs: Any) -> Any:
        if self.training and next(steps) == 6:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(TodmModel, "forward", killed)
        main(options(data, tmp_path / "killed", **changes))
    main(options(data, tmp_path / "killed", **changes))
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_workers_change_nothing(data: Path, tmp_path: Path) -> None:
    main(options(data, tmp_path / "none", num_iters_per_epoch=3, max_epoch=2))
    main(options(data, tmp_path / "two", num_iters_per_epoch=3, max_epoch=2, num_workers=2))
    assert equal(weights(tmp_path / "none"), weights(tmp_path / "two"))


def test_validation_may_stay_with_espnets_tables(data: Path, tmp_path: Path) -> None:
    tables = [option for option in arguments(data, tmp_path) if not option.startswith("--resume")]
    valid = tables[tables.index("--valid_data_path_and_name_and_type") :][:8]
    main([*options(data, tmp_path, conf={"valid": None}, max_epoch=1), *valid])
    assert (tmp_path / "exp" / "1epoch.pth").exists()


def test_another_iterator_is_refused_and_loses_nothing(data: Path, tmp_path: Path) -> None:
    main(options(data, tmp_path, num_iters_per_epoch=3, max_epoch=1))
    before = weights(tmp_path)
    with pytest.raises(UserError, match=r"iterator_conf.max_duration: 3.0, but the checkpoint was trained with 2.5"):
        main(options(data, tmp_path, conf={"max_duration": 3.0}, num_iters_per_epoch=3))
    write_config(data / "config.yaml", num_iters_per_epoch=3)
    with pytest.raises(UserError, match=r"iterator: none, but the checkpoint was trained with lhotse"):
        main(arguments(data, tmp_path / "exp"))
    assert equal(before, weights(tmp_path))
    main(options(data, tmp_path, conf={"max_duration": 3.0, "resume": "next_pass"}, num_iters_per_epoch=3))
    assert (tmp_path / "exp" / "3epoch.pth").exists()


@pytest.mark.parametrize(
    ("conf", "more", "message"),
    [
        (
            {"max_durations": 3},
            [],
            "iterator_conf: unknown key 'max_durations' for lhotse; allowed: train, valid, features",
        ),
        ({"max_duration": "3"}, [], "iterator_conf.max_duration: '3' is text to YAML"),
        ({"train": None}, [], "iterator_conf.train: None"),
        ({"train": "nowhere"}, [], "iterator_conf.train: nowhere: no such file or folder"),
        ({"features": "on_the_fly"}, [], "on_the_fly computes 80 filters, but input_size is 20; say --input_size 80"),
        ({"features": "none"}, [], "features: none gives audio, but input_size: 20 is for features; leave it out"),
        ({"max_duration": 0.65}, [], "iterator_conf.max_duration: 0.65, but utt"),
        ({}, ["--use_preprocessor", "false"], "use_preprocessor: false, but iterator: lhotse needs true"),
    ],
)
def test_what_cannot_work_ends_in_one_line(
    data: Path, tmp_path: Path, conf: dict[str, Any], more: list[str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        main(options(data, tmp_path, *more, conf=conf))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_features_that_are_gone_are_named_by_a_worker_too(data: Path, tmp_path: Path) -> None:
    cuts = feature_cuts(tmp_path / "features", {"a": torch.zeros(60, 20).numpy()}, {"a": "abc"})
    write_manifest(cuts, tmp_path / "cuts.jsonl.gz")
    (tmp_path / "features" / "a.npy").unlink()
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"a: its features cannot be read: .*No such file"):
            main(
                options(
                    data, tmp_path / str(workers), conf={"train": str(tmp_path / "cuts.jsonl.gz")}, num_workers=workers
                )
            )


def _rank(rank: int, data: Path, folder: Path, ports: list[int]) -> None:
    """A whole training, one that is stopped, and the latter resumed."""
    torch.set_num_threads(1)
    runs = [("whole", []), ("stopped", ["--max_epoch", "1"]), ("stopped", [])]
    for port, (name, more) in zip(ports, runs):
        where = ["--dist_world_size", "2", "--dist_rank", str(rank), "--dist_master_addr", "127.0.0.1"]
        where += ["--dist_backend", "gloo", "--dist_master_port", str(port)]
        main(options(data, folder / name, *where, *more, num_iters_per_epoch=3))
        torch.distributed.destroy_process_group()


def test_two_ranks_resume_exactly_and_another_number_of_ranks_is_refused(data: Path, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (data, tmp_path, [free_port() for _ in range(3)]), nprocs=2)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))
    with pytest.raises(UserError, match=r"ranks: 1, but the checkpoint was trained with 2"):
        main(options(data, tmp_path / "stopped", "--max_epoch", "4", num_iters_per_epoch=3))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
