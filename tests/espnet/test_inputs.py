"""What is wrong with the data of a training ends in one line before it begins; what it can do without is left out."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from espnet_todm import register
from espnet_todm.bin.asr_train import main
from espnet_todm.errors import UserError
from espnet_todm.espnet.inputs import Batches, batch_errors, check_data, without_missing_packages
from espnet_todm.espnet.options import parse_training
from tests.tiny_training import arguments, python, write_config, write_data


@pytest.fixture
def data(tmp_path: Path) -> Path:
    register()
    return write_data(tmp_path / "data")


def keep(path: Path, lines: slice) -> None:
    path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines()[lines]))


def train(data: Path, *more: str, **changes: Any) -> None:
    write_config(data / "config.yaml", max_epoch=1, **changes)
    main(arguments(data, data / "exp", *more))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda data: (data / "speech_shape").write_text(""), r"train set: .*speech_shape holds no utterance"),
        (lambda data: (data / "text").write_text("\n \n"), r"train set: .*text holds no utterance"),
        (lambda data: (data / "feats.scp").unlink(), r"feats.scp: no such file"),
        (
            lambda data: keep(data / "text", slice(3, None)),
            r"text: lacks 3 of 12 utterances of .*speech_shape, the first is utt00; collect the statistics again",
        ),
        (
            lambda data: (data / "text").write_text((data / "text").read_text(), encoding="utf-8-sig"),
            r"text: begins with a byte order mark, .* sed -i '1s/\^\\xEF\\xBB\\xBF//' .*text$",
        ),
        (lambda data: keep(data / "text_shape", slice(11)), r"text_shape: lacks 1 of 12 utterances .* utt11"),
    ],
)
def test_tables_that_do_not_fit_are_told_before_the_training(
    data: Path, harm: Callable[[Path], Any], message: str
) -> None:
    harm(data)
    with pytest.raises(UserError, match=message) as caught:
        train(data)
    assert "\n" not in str(caught.value) and not (data / "exp").exists()


def test_a_validation_set_of_its_own_is_looked_at_too(data: Path) -> None:
    (data / "empty").write_text("")
    options = parse_training([*arguments(data, data / "exp")])
    options.valid_shape_file = [str(data / "empty")]
    with pytest.raises(UserError, match=r"valid set: .*empty holds no utterance"):
        check_data(options)
    options.collect_stats = True  # which makes these files
    check_data(options)


def test_less_data_than_processes(data: Path) -> None:
    for name in ("speech_shape", "text_shape"):
        keep(data / name, slice(1))
    options = parse_training([*arguments(data, data / "exp")])
    check_data(options)
    options.dist_world_size = 2
    with pytest.raises(
        UserError, match=r"train set: utterances in .*speech_shape: 1, but 2 processes share each batch"
    ):
        check_data(options)
    options.dist_world_size, options.ngpu, options.multiprocessing_distributed = None, 4, True
    with pytest.raises(UserError, match="but 4 processes"):
        check_data(options)


def test_the_processes_of_a_cpu_training_say_why_they_ended(data: Path) -> None:
    for name in ("speech_shape", "text_shape"):
        keep(data / name, slice(1))
    ended = python(["-m", "espnet_todm.bin.asr_train_cpu", "--processes", "2", "--", *arguments(data, data / "exp")])
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert "but 2 processes share each batch" in lines[-2] and "training ended" in lines[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterator_type": "chunk"}, r"iterator_type: 'chunk' is not possible \(it cuts speech .*sequence, category$"),
        ({"valid_iterator_type": "chunk"}, "valid_iterator_type: 'chunk' is not possible"),
        ({"iterator_type": "task"}, "iterator_type: 'task' is not possible; allowed: sequence, category"),
        ({"iterator_type": "category"}, "train set: its batches cannot be made: category2utt mandatory"),
        ({"batch_type": "catpow"}, "train set: its batches cannot be made: Not supported: catpow.*unsorted, sorted"),
        ({"batch_type": "sorted_by_age"}, "train set: its batches cannot be made: Not supported: sorted_by_age"),
        ({"batch_size": 0}, "batch_size: 0 is not allowed, it must be a whole number >= 1"),
        ({"batch_type": "numel", "batch_bins": "many"}, "batch_bins: invalid int value: 'many'"),
    ],
)
def test_batches_that_cannot_be_made_are_told_in_one_line(data: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        train(data, **changes)
    assert "\n" not in str(caught.value)


def test_wandb_that_is_not_installed(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "wandb")
    with pytest.raises(UserError, match="use_wandb: true needs wandb, which is not installed; pip install wandb, or"):
        train(data, use_wandb=True)


def hide(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Make packages look as if they were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in packages else find(name, *rest)
    )
    for name in [name for name in sys.modules if name.split(".")[0] in packages]:
        monkeypatch.delitem(sys.modules, name)
    for name in packages:
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails


def test_a_training_without_tensorboard_and_matplotlib(
    data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hide(monkeypatch, "tensorboard", "matplotlib")
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    train(data, use_tensorboard=True, use_matplotlib=True)
    assert (data / "exp" / "1epoch.pth").exists()
    assert "use_tensorboard: tensorboard is not installed, so there will be no curves of the training" in caplog.text
    assert "use_matplotlib: matplotlib is not installed, so there will be no pictures" in caplog.text


def test_what_is_installed_stays_on(data: Path) -> None:
    options = parse_training(arguments(data, data / "exp"))
    options.use_tensorboard = options.use_matplotlib = True
    without_missing_packages(options)
    assert options.use_tensorboard and options.use_matplotlib


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_batch_that_cannot_be_read_is_told(data: Path, workers: str) -> None:
    table = data / "feats.scp"
    table.write_text(table.read_text().replace("feats.ark:", "text:"))  # no archive of features
    with pytest.raises(UserError, match=r"train set: a batch cannot be read: ") as caught:
        train(data, "--num_workers", workers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batch_type", ["sorted", "folded", "length", "numel", "unsorted"])
def test_one_utterance_and_a_batch_larger_than_the_data_train(data: Path, batch_type: str) -> None:
    for name in ("speech_shape", "text_shape"):
        keep(data / name, slice(1))
    lengths = ["--fold_length", "60", "--fold_length", "10", "--batch_bins", "90000"]
    train(data, *lengths, batch_type=batch_type, batch_size=100, num_workers=1)
    assert (data / "exp" / "valid.loss.best.pth").exists()


def test_batches_hand_on_what_they_hold_and_what_is_told_already() -> None:
    assert list(Batches([1, 2], "valid")) == [1, 2] and len(Batches([1, 2], "valid")) == 2

    def told() -> Iterator[int]:
        yield 1
        raise UserError("a line of its own")

    with pytest.raises(UserError, match=r"^a line of its own$"):
        list(Batches(told(), "valid"))
    with pytest.raises(UserError, match="valid set: a batch cannot be read: KeyError 'utt'"):
        list(Batches(({}[key] for key in ["utt"]), "valid"))
    with (
        pytest.raises(UserError, match="2 < 4; say drop_last_iter: true, or another batch_size"),
        batch_errors("train"),
    ):
        raise RuntimeError("The batch-size must be equal or more than world_size: 2 < 4")
    with pytest.raises(UserError, match=r"^a line$"), batch_errors("train"):
        raise UserError("a line")
