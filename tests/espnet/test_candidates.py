"""Which epochs' models compete, before and after sizes are chosen; what their averages are."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from espnet2.train.reporter import Reporter

from espnet_todm.bin.asr_train import main as train
from espnet_todm.bin.extract import main as extract
from espnet_todm.espnet.candidates import CandidateReporter, average_candidates
from espnet_todm.espnet.checkpoint_files import guarded_checkpoints
from tests.tiny_training import CONFIG, arguments, write_config, write_data

LOSS = ("valid", "loss", "min")


def report(losses: list[float], chosen_in: int = 1, **more: list[float]) -> CandidateReporter:
    """A reporter after so many epochs, in one of which the sizes were chosen."""
    pending = [chosen_in > 1]
    reporter = CandidateReporter(lambda: pending[0])
    for epoch, loss in enumerate(losses, 1):
        reporter.set_epoch(epoch)
        pending[0] = epoch < chosen_in
        with reporter.observe("valid") as part:
            part.register({"loss": loss, **{name: values[epoch - 1] for name, values in more.items()}})
            part.next()
    return reporter


@pytest.mark.parametrize("mode", ["min", "max"])
def test_without_stages_epochs_are_ranked_as_by_espnet(mode: str) -> None:
    losses = [3.0, 1.0, 2.0, 1.0]
    ours, espnets = report(losses), Reporter()
    espnets.load_state_dict(ours.state_dict())
    expected = espnets.sort_epochs_and_values("valid", "loss", mode)
    assert ours.sort_epochs_and_values("valid", "loss", mode) == expected
    with pytest.raises(ValueError, match="most"):
        ours.sort_epochs("valid", "loss", "most")
    with pytest.raises(KeyError, match=r"valid\.acc"):
        ours.sort_epochs("valid", "acc", mode)


def test_the_contest_begins_anew_when_sizes_are_chosen() -> None:
    assert report([1.0, 2.0, 3.0], chosen_in=9).sort_epochs(*LOSS) == [1, 2, 3]  # among themselves
    assert report([1.0, 2.0, 3.0, 5.0, 4.0], chosen_in=4).sort_epochs(*LOSS) == [5, 4]
    assert report([1.0, 2.0], chosen_in=1).sort_epochs(*LOSS) == [1, 2]


def test_a_resumed_run_knows_who_competes() -> None:
    first = report([1.0, 2.0, 3.0, 5.0, 4.0], chosen_in=4)
    again = CandidateReporter(lambda: False)
    again.load_state_dict(first.state_dict())
    assert again.sort_epochs(*LOSS) == [5, 4]
    again.load_state_dict({"stats": first.stats, "epoch": 5})  # stock ESPnet's
    assert again.sort_epochs(*LOSS) == [1, 2, 3, 5, 4]


def test_patience_begins_when_sizes_are_chosen() -> None:
    assert not report([1.0, 2.0, 3.0, 4.0], chosen_in=9).check_early_stopping(1, *LOSS)
    assert not report([1.0, 5.0, 4.0, 6.0], chosen_in=2).check_early_stopping(1, *LOSS)
    assert report([1.0, 5.0, 4.0, 6.0, 7.0], chosen_in=2).check_early_stopping(1, *LOSS)


def test_an_epoch_whose_value_is_not_finite_is_not_the_best() -> None:
    nan, inf = math.nan, math.inf
    assert report([nan, 3.0, inf, 2.0, nan]).sort_epochs(*LOSS) == [4, 2]
    assert report([2.0, nan, inf]).sort_epochs("valid", "loss", "max") == [1]
    assert sorted(report([nan, nan]).sort_epochs(*LOSS)) == [1, 2]


def save_models(folder: Path, values: list[float]) -> None:
    for epoch, value in enumerate(values, 1):
        torch.save({"weight": torch.tensor([value])}, folder / f"{epoch}epoch.pth")


def weight(path: Path) -> float:
    return float(torch.load(path, weights_only=True)["weight"])


def test_averages_are_over_what_was_saved_and_leave_out_what_is_from_before_the_choice(tmp_path: Path, caplog) -> None:
    save_models(tmp_path, [1000.0, 1.0, 2.0, 6.0])
    reporter = report([0.1, 0.3, 0.2, 0.4], chosen_in=2, acc=[0.9, 0.3, 0.5, 0.4])
    average_candidates(tmp_path, reporter, [list(LOSS), ["valid", "acc", "max"], ["valid", "wer", "min"]], [2, 10])
    assert weight(tmp_path / "valid.loss.ave_2best.pth") == 1.5
    assert weight(tmp_path / "valid.loss.ave.pth") == weight(tmp_path / "valid.loss.ave_3best.pth") == 3.0
    assert (
        weight(tmp_path / "valid.acc.ave_2best.pth") == 4.0
    )  # epochs 3 and 4; ESPnet would begin with the last average
    assert weight(tmp_path / "valid.acc.ave.pth") == 3.0
    assert "valid.loss: an average of 3 models, not of 10; of other epochs" in caplog.text


def test_an_average_may_be_over_models_of_an_older_release_and_of_this_one(tmp_path: Path) -> None:
    kept = torch.tensor([[1, 0]])
    new = {"stage": torch.tensor(2), "kept": kept, "models": torch.tensor(1)}
    torch.save({"subnet_trainer.chosen": kept.float()}, tmp_path / "1epoch.pth")
    torch.save({f"subnet_trainer.switch.{name}": value for name, value in new.items()}, tmp_path / "2epoch.pth")
    with guarded_checkpoints():
        average_candidates(tmp_path, report([2.0, 1.0]), [list(LOSS)], 2)
    state = torch.load(tmp_path / "valid.loss.ave.pth", weights_only=True)
    assert {name.rpartition(".")[2]: value.tolist() for name, value in state.items()} == {
        "stage": 4,
        "kept": [[2, 0]],
        "models": 2,
    }


def test_an_epoch_whose_value_is_not_finite_is_in_no_average(tmp_path: Path, caplog) -> None:
    save_models(tmp_path, [1.0, math.nan, 3.0])
    average_candidates(tmp_path, report([2.0, math.nan, 1.0]), [list(LOSS)], 3)
    assert weight(tmp_path / "valid.loss.ave.pth") == 2.0
    assert "an average of 2 models, not of 3" in caplog.text


def test_a_short_run_without_stages_is_averaged_as_by_espnet(tmp_path: Path, caplog) -> None:
    save_models(tmp_path, [1.0, 3.0])
    average_candidates(tmp_path, report([2.0, 1.0]), [list(LOSS)], 10, suffix="till2epoch")
    assert (tmp_path / "valid.loss.ave.till2epoch.pth").readlink().name == "valid.loss.ave_1best.till2epoch.pth"
    assert weight(tmp_path / "valid.loss.ave.till2epoch.pth") == 3.0
    assert not caplog.records


def test_a_real_run_averages_models_of_the_second_stage_alone(tmp_path: Path, caplog) -> None:
    """The switch is in step 4 of 3 a epoch, with half an update accumulated; the run is resumed after it."""
    data, output = write_data(tmp_path / "data"), tmp_path / "exp"
    encoder = {"encoder_conf": {**CONFIG["encoder_conf"], "sizes": {"small": 0.7}}}
    trainer = {"subnet_trainer": "ortho_softmax", "subnet_trainer_conf": {"stage1_steps": 4}}
    write_config(data / "config.yaml", **encoder, **trainer, keep_nbest_models=[2, 3], accum_grad=3)
    for epochs in (2, 3):
        train([*arguments(data, output, "--max_epoch", str(epochs))])
    assert {path.name for path in output.glob("*epoch.pth")} == {"2epoch.pth", "3epoch.pth"}
    assert "an average of 2 models, not of 3" in caplog.text
    averaged = torch.load((output / "valid.loss.ave.pth").resolve(), weights_only=True)
    last, state = torch.load(output / "3epoch.pth", weights_only=True), "subnet_trainer.switch."
    assert torch.equal(averaged[f"{state}kept"], 2 * last[f"{state}kept"]) and averaged[f"{state}models"] == 2
    extract(["--config", str(output / "config.yaml"), "--sizes", "small", "--output", str(tmp_path),
             "--asr_model_file", str(output / "valid.loss.ave.pth")])  # fmt: skip
