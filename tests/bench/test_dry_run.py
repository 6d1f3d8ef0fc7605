"""A dry run: what it prints, that it really steps, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import espnet_todm
from espnet_todm.bench.dry_run import dry_run
from espnet_todm.bin.dry_run import main
from espnet_todm.errors import UserError
from espnet_todm.espnet.options import parse_training
from espnet_todm.trainers.two_stage import TwoStageTrainer
from tests.tiny_training import CONFIG, write_config

espnet_todm.register()
REQUIRED = ["--output_dir", "-", "--token_list", "-", "--input_size", "20"]


def run(folder: Path, *more: str, vocabulary: int = 12, **changes: Any) -> Any:
    config = write_config(folder / "config.yaml", **changes)
    return dry_run(parse_training(["--config", str(config), *REQUIRED, *more]), vocabulary, seconds=1.0)


def test_a_step_of_everything(tmp_path: Path) -> None:
    done = run(tmp_path, vocabulary=30)
    assert list(done.costs) == ["full", "small"] and math.isfinite(done.loss) and done.seconds > 0
    assert done.costs["full"].params > done.costs["small"].params
    assert done.rates[1] == pytest.approx(2 * done.rates[0])  # warmuplr has made its step
    assert done.costs["full"].params - run(tmp_path).costs["full"].params == 18 * 17  # output layer, 16 wide


def test_both_stages_of_a_learned_selection_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages, step = [], TwoStageTrainer.step

    def recorded(self: TwoStageTrainer, *arguments: Any) -> Any:
        stages.append((self.decided, sorted(subnet.name for subnet in self.picked(arguments[2]))))
        return step(self, *arguments)

    monkeypatch.setattr(TwoStageTrainer, "step", recorded)
    conf = {"stage1_share": 0.5, "warmup_steps": 3}
    changes = {
        "subnet_trainer": "ortho_softmax",
        "subnet_trainer_conf": conf,
        "encoder_conf": {**CONFIG["encoder_conf"], "sizes": {"small": 0.7}},
    }
    assert math.isfinite(run(tmp_path, **changes).loss)
    assert stages == [(False, ["full", "small"]), (True, ["full", "small"])]


def test_no_schedule_and_statistics_that_are_not_there(tmp_path: Path) -> None:
    changes = {"scheduler": None, "normalize": "global_mvn", "normalize_conf": {"stats_file": "nowhere.npz"}}
    assert run(tmp_path, **changes).rates == (0.01, 0.01)


def test_the_command_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path / "config.yaml")
    main(
        [
            "--config",
            str(config),
            "--input_size",
            "20",
            "--vocabulary",
            "12",
            "--seconds",
            "1",
            "--optim_conf",
            "lr=0.5",
        ]
    )
    printed = capsys.readouterr().out
    for part in ("|full|", "|small|", "100.0%", "optim: adam, scheduler: warmuplr, lr: 0.1,", "finite"):
        assert part in printed, printed
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml"}
    assert "ms per s" not in printed  # nobody measured it


def test_audio_goes_through_the_front_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path / "config.yaml", frontend_conf={"n_mels": 20})
    main(["--config", str(config), "--input_size", "0", "--vocabulary", "12", "--seconds", "1"])
    assert "|small|" in capsys.readouterr().out


def test_a_front_end_that_the_configuration_names_is_tried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = write_config(tmp_path / "config.yaml", frontend="todm_fbank", frontend_conf={"fs": "16k", "n_mels": 20})
    main(["--config", str(named), "--vocabulary", "12", "--seconds", "1"])
    assert "|small|" in capsys.readouterr().out
    wrong = write_config(tmp_path / "config.yaml", frontend="todm_fbank", frontend_conf={"hop_length": 128})
    with pytest.raises(UserError, match=r"frontend_conf\.hop_length: 128; allowed: 160"):
        main(["--config", str(wrong), "--vocabulary", "12", "--seconds", "1"])


@pytest.mark.parametrize(
    ("more", "changes", "message"),
    [
        ((), {"vocabulary": 3}, "vocabulary: 3 is not allowed, it must be a whole number >= 4"),
        ((), {"optim_conf": {"lrr": 1}}, "optim_conf: unknown key 'lrr'"),
        ((), {"model": None, "subnet_trainer": None, "subnet_trainer_conf": None}, "describes no supernet"),
        (
            (),
            {"scheduler": "one_cycle_linear", "scheduler_conf": {}},
            "one_cycle_linear is now .*piecewiselinearwarmuplr",
        ),
        (("--max_epochz", "3"), {}, "--max_epochz"),
        (("--iterator_conf", "max_duration=9"), {}, "iterator_conf: {'max_duration': 9} is for iterator: lhotse, but"),
        (
            ("--iterator", "lhotse", "--iterator_conf", "train=shar", "--iterator_conf", "max_duration=0"),
            {},
            "iterator_conf.max_duration: 0 is not allowed",
        ),
        ((), {"use_adapter": True}, "use_adapter: true is not possible with model: todm"),
    ],
)
def test_a_wrong_config_ends_in_one_clear_line(tmp_path: Path, more: tuple, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        run(tmp_path, *more, **changes)
    assert "\n" not in str(error.value)


def test_a_loss_that_is_not_finite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from espnet_todm.models.todm import TodmModel

    forward = TodmModel.forward
    monkeypatch.setattr(TodmModel, "forward", lambda *given, **named: (forward(*given, **named)[0] * math.nan,))
    with pytest.raises(UserError, match=r"config\.yaml: the loss of step 0 is nan"):
        run(tmp_path)
