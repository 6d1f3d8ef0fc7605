"""What a training looks at before it begins, and what ends it: each in one line. ESPnet itself trains, in this process."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from espnet_todm.bin.asr_train import main
from espnet_todm.bin.extract import main as extract
from espnet_todm.errors import UserError
from espnet_todm.util.files import read_json
from espnet_todm.util.stage_marker import exclusive
from tests.tiny_training import arguments, write_config, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_data(tmp_path_factory.mktemp("data"))
    write_config(folder / "config.yaml", max_epoch=2, keep_nbest_models=2)
    return folder


@pytest.fixture(scope="module")
def first_epoch(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "exp"
    main(arguments(data, folder, "--max_epoch", "1"))
    return folder


@pytest.fixture
def trained(first_epoch: Path, tmp_path: Path) -> Path:
    """An experiment after one epoch, to be damaged."""
    shutil.copytree(first_epoch, tmp_path / "exp", symlinks=True)
    return tmp_path / "exp"


def flip(path: Path, where: bytes = b"") -> None:
    """Flip a bit in the middle of a file, or behind some bytes in it."""
    content = bytearray(path.read_bytes())
    content[content.index(where) + len(where) if where else len(content) // 2] ^= 4
    path.write_bytes(content)


class _Runs:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def poison(path: Path) -> Path:
    """Code among the checkpoint's entries; returns the folder that it would make."""
    states = torch.load(path, weights_only=False)
    trace = path.with_suffix(".ran")
    torch.save({**states, "more": _Runs(trace)}, path)
    return trace


def test_a_damaged_state_is_not_gone_on_from(data: Path, trained: Path) -> None:
    flip(trained / "checkpoint.pth")
    with pytest.raises(UserError, match=r"exp/checkpoint\.pth: damaged: "):
        main(arguments(data, trained))


def test_a_damaged_epoch_is_not_averaged(data: Path, trained: Path) -> None:
    flip(trained / "1epoch.pth")
    with pytest.raises(UserError, match=r"exp/1epoch\.pth: damaged: "):
        main(arguments(data, trained))
    assert not (trained / "valid.loss.ave_2best.pth").exists()


def test_damaged_weights_are_not_begun_from(data: Path, trained: Path, tmp_path: Path) -> None:
    flip(trained / "1epoch.pth")
    with pytest.raises(UserError, match=r"exp/latest\.pth: damaged: "):
        main(arguments(data, tmp_path / "new", "--init_param", str(trained / "latest.pth") + ":encoder:encoder"))
    assert not (tmp_path / "new/config.yaml").exists()


@pytest.mark.parametrize("place", ["checkpoint.pth", "1epoch.pth"])
def test_code_in_a_checkpoint_does_not_run(data: Path, trained: Path, tmp_path: Path, place: str) -> None:
    trace = poison(trained / place)
    options = arguments(data, trained)
    if place == "1epoch.pth":
        options = arguments(data, tmp_path / "new", "--init_param", str(trained / place))
    with pytest.raises(UserError, match=rf"exp/{place}: holds posix\.mkdir, which is no tensor"):
        main(options)
    assert not trace.exists()


def test_espnets_own_decoding_reads_what_passed(trained: Path, tmp_path: Path) -> None:
    from espnet2.tasks.asr import ASRTask

    ASRTask.build_model_from_file(trained / "config.yaml", trained / "1epoch.pth")
    with pytest.raises(UserError, match=r"checkpoint\.pth: is the state of a training"):
        ASRTask.build_model_from_file(trained / "config.yaml", trained / "checkpoint.pth")
    trace = poison(trained / "1epoch.pth")
    with pytest.raises(UserError, match="could run code"):
        ASRTask.build_model_from_file(trained / "config.yaml", trained / "latest.pth")
    assert not trace.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_ends_the_training_and_the_last_checkpoint_stays(
    data: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tempfile.mkstemp

    def mkstemp(prefix: str, suffix: str, dir: Path) -> tuple[int, str]:
        if not prefix.startswith(".checkpoint.pth"):
            return plain(prefix=prefix, suffix=suffix, dir=dir)
        (dir / f"{prefix}{suffix}").symlink_to("/dev/full")
        return os.open("/dev/full", os.O_WRONLY), str(dir / f"{prefix}{suffix}")

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    before = (trained / "checkpoint.pth").read_bytes()
    with pytest.raises(UserError, match=r"exp/checkpoint\.pth: cannot be written: No space left on device"):
        main(arguments(data, trained))
    assert (trained / "checkpoint.pth").read_bytes() == before
    assert not list(trained.glob(".*.part"))


def _retoken(source: Path, target: Path, change: Any) -> str:
    tokens = source.read_text(encoding="utf-8").splitlines()
    target.write_text("\n".join(change(tokens)) + "\n", encoding="utf-8")
    return str(target)


def _swap(tokens: list[str]) -> list[str]:
    return [*tokens[:4], tokens[5], tokens[4], *tokens[6:]]


def test_other_tokens_do_not_go_on(data: Path, trained: Path, tmp_path: Path) -> None:
    swapped = _retoken(data / "tokens.txt", tmp_path / "swapped.txt", _swap)
    line = r"exp: was trained with other tokens: number 4 was 'b', and is 'c' now"
    with pytest.raises(UserError, match=line):
        main(arguments(data, trained, "--token_list", swapped))
    os.truncate(trained / "config.yaml", 50)  # a run was killed while it wrote this
    with pytest.raises(UserError, match=r"swapped\.txt: its token list is not the one in .*exp/vocabulary\.json"):
        main(arguments(data, trained, "--token_list", swapped))
    main(arguments(data, trained, "--token_list", swapped, "--resume", "false", "--max_epoch", "1"))  # a new training
    assert read_json(trained / "vocabulary.json")["size"] == 11


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda tokens: tokens[1:], "token_list: has 10 tokens, but no <blank>"),
        (lambda tokens: [*tokens[:-2], "a", tokens[-1]], "token_list: 'a' stands twice"),
    ],
)
def test_a_token_list_that_cannot_be_is_refused(data: Path, tmp_path: Path, change: Any, line: str) -> None:
    tokens = _retoken(data / "tokens.txt", tmp_path / "tokens.txt", change)
    with pytest.raises(UserError, match=line):
        main(arguments(data, tmp_path / "exp", "--token_list", tokens))


def test_other_tokens_are_not_extracted(trained: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((trained / "config.yaml").read_text(encoding="utf-8"))
    config["token_list"] = _swap(config["token_list"])
    (trained / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"config\.yaml: token_list: its token list is not the one in .*vocabulary\.json"
    ):
        extract(["--config", str(trained / "config.yaml"), "--output", str(tmp_path / "out")])


def test_the_state_of_a_training_is_extracted_like_its_last_epoch(trained: Path, tmp_path: Path) -> None:
    for name in ("checkpoint.pth", "1epoch.pth"):
        files = ["--asr_train_config", str(trained / "config.yaml"), "--asr_model_file", str(trained / name)]
        extract([*files, "--output", str(tmp_path / name), "--sizes", "small"])
    first, second = (tmp_path / name / "small/model.safetensors" for name in ("checkpoint.pth", "1epoch.pth"))
    assert first.read_bytes() == second.read_bytes()


def test_swapped_tokens_of_an_extracted_size_are_refused(trained: Path, tmp_path: Path) -> None:
    from espnet_todm.espnet.load import load_extracted

    extract(["--config", str(trained / "config.yaml"), "--output", str(tmp_path), "--sizes", "small"])
    path = tmp_path / "small/config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump({**config, "token_list": _swap(config["token_list"])}), encoding="utf-8")
    with pytest.raises(
        UserError, match=r"small/config\.yaml: token_list: its token list is not the one in .*card\.json"
    ):
        load_extracted(tmp_path / "small")


def test_only_one_training_writes_a_folder(data: Path, trained: Path) -> None:
    with (
        exclusive(trained),
        pytest.raises(UserError, match=rf"exp: another process is writing it \(pid {os.getpid()} on "),
    ):
        main(arguments(data, trained))


@pytest.mark.parametrize("what", ["a file", "a link"])
def test_an_output_that_is_no_folder_is_refused(data: Path, tmp_path: Path, what: str) -> None:
    if what == "a file":
        (tmp_path / "exp").touch()
    else:
        (tmp_path / "exp").symlink_to("nowhere")
    with pytest.raises(UserError, match=rf"exp: is {what}.*, but must be a folder"):
        main(arguments(data, tmp_path / "exp"))


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_command_in_the_data_is_not_run(data: Path, tmp_path: Path, workers: str) -> None:
    copy = shutil.copytree(data, tmp_path / "data")
    rows = (copy / "feats.scp").read_text().splitlines()
    (copy / "feats.scp").write_text("\n".join([f"utt00 touch {tmp_path}/ran |:5", *rows[1:]]) + "\n")
    options = arguments(copy, tmp_path / "exp", "--num_workers", workers)
    with pytest.raises(UserError, match=r"^touch .*/ran \|: a shell command in a table of data; pipes are not run"):
        main(options)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "not finite", "gone"])
def test_damaged_statistics_are_named(data: Path, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "feats_stats.npz"
    total = np.full(20, np.nan if damage == "not finite" else 1.0)
    np.savez(path, count=100, sum=total, sum_square=np.ones(20))
    if damage == "flipped":
        flip(path, b"'shape': (20,), }")
    elif damage in ("truncated", "empty"):
        os.truncate(path, 300 if damage == "truncated" else 0)
    elif damage == "gone":
        path.unlink()
    options = ["--normalize", "global_mvn", "--normalize_conf", f"stats_file={path}"]
    with pytest.raises(UserError, match=r"feats_stats\.npz: (damaged \(|no such file)") as error:
        main(arguments(data, tmp_path / "exp", *options))
    assert "\n" not in str(error.value)
