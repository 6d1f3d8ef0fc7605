"""The front door for Python, as the README shows it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import espnet_todm
from espnet_todm.deploy.extract import extract, load_supernet
from espnet_todm.errors import UserError
from espnet_todm.recognizer import Model, Supernet
from tests.tiny_experiment import write_experiment

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the mini recipe leaves it, for the README's lines."""
    root = tmp_path_factory.mktemp("recipe")
    folder = write_experiment(root / "exp/train_todm_fbank_char", features=80)
    shutil.copyfile(folder / "model.pth", folder / "valid.loss.best.pth")
    spoken = root / "downloads/LibriSpeech/test/1/2"
    spoken.mkdir(parents=True)
    noise = np.random.default_rng(0).normal(scale=0.1, size=16000)
    soundfile.write(spoken / "1-2-0001.flac", noise, 16000)
    supernet = load_supernet(folder / "config.yaml", folder / "model.pth")
    extract(supernet, supernet.encoder.find_subnet("small"), folder / "subnets/small")
    return root


@pytest.fixture(scope="module")
def supernet(trained: Path) -> Supernet:
    return espnet_todm.load_supernet(trained / "exp/train_todm_fbank_char")


def test_the_lines_of_the_readme_run(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(import .*?|from .*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(trained)
    exec(compile(code, "README.md", "exec"), {})
    sizes, full, small, with_cost, of_espnet = capsys.readouterr().out.splitlines()
    assert sizes.startswith("{'full': Size(params=") and "'small': Size(params=" in sizes
    assert full != small and with_cost.rpartition(" ")[0] == small
    assert set(of_espnet) <= set("ABCDEFG ")


def test_sizes_cost_what_their_models_hold(supernet: Supernet) -> None:
    assert list(supernet.sizes) == ["full", "uneven", "small"]  # the largest first
    for name, size in supernet.sizes.items():
        model = supernet.subnet(name)
        assert size.params == model.card["cost"]["params"] and size.flops == pytest.approx(
            model.card["cost"]["flops_per_second"]
        )


def test_a_folder_a_file_samples_and_the_extracted_model_agree(trained: Path, supernet: Supernet) -> None:
    wav = next((trained / "downloads").rglob("*.flac"))
    samples, _ = soundfile.read(wav, dtype="float32")
    small = espnet_todm.load_model(trained / "exp/train_todm_fbank_char/subnets/small")
    text = small.transcribe(wav)
    assert text and text == small.transcribe(samples) == supernet.subnet("small").transcribe(str(wav))
    assert supernet.transcribe(wav) == supernet.subnet("full").transcribe(samples)


def test_a_budget_and_a_card_make_a_model_in_a_folder_of_ones_own(trained: Path, tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "exp", features=80, conv_norm="layer_norm")
    supernet = espnet_todm.load_supernet(folder / "config.yaml", folder / "model.pth")
    budget = f"{supernet.sizes['full'].params * 0.7 / 1e3:.3f}K"
    model = supernet.subnet(budget, output=tmp_path / "out")
    assert Path(model.config_file).parent == tmp_path / "out"
    assert 0.6 * supernet.sizes["full"].params < model.card["cost"]["params"] <= 0.7 * supernet.sizes["full"].params
    again = supernet.subnet(str(tmp_path / "out/card.json"))
    assert again.card["kept"] == model.card["kept"]
    by_flops = supernet.subnet(f"flops={supernet.sizes['full'].flops * 0.7}")
    assert by_flops.card["cost"]["flops_per_second"] <= 0.7 * supernet.sizes["full"].flops


def test_batch_norm_of_a_budget_is_calibrated(trained: Path, supernet: Supernet) -> None:
    budget = f"params={supernet.sizes['full'].params * 0.7}"
    with pytest.raises(UserError, match="calibrate"):
        supernet.subnet(budget)
    scp = trained / "exp/train_todm_fbank_char/feats.scp"
    assert supernet.subnet(budget, calibrate=scp).card["cost"]["params"] < supernet.sizes["full"].params


@pytest.mark.parametrize(
    ("which", "words"), [("smal", "smal"), ("watts=3", "'watts=3' is no budget; allowed: params="), ("1K", "budget")]
)
def test_what_is_no_subnet_ends_in_one_line(supernet: Supernet, which: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        supernet.subnet(which)
    assert "\n" not in str(error.value)


def test_other_audio_ends_in_one_line(trained: Path, tmp_path: Path) -> None:
    small = Model(trained / "exp/train_todm_fbank_char/subnets/small")
    soundfile.write(tmp_path / "fast.wav", np.zeros(8000), 8000)
    with pytest.raises(UserError, match=r"fast\.wav: the file has 1 channel.* of 8000 Hz, but 1 of 16000 Hz is needed"):
        small.transcribe(tmp_path / "fast.wav")
    with pytest.raises(UserError, match=r"gone\.wav: cannot be read as audio"):
        small.transcribe(tmp_path / "gone.wav")
    with pytest.raises(UserError, match="needed: one channel of floats"):
        small.transcribe(np.zeros(8000, dtype=np.int16))
    assert small.transcribe(np.zeros(10, dtype=np.float32)) == ""


def test_what_is_not_there_ends_in_one_line(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(UserError, match=r"card\.json"):
        espnet_todm.load_model(tmp_path)
    with pytest.raises(UserError, match=r"config\.yaml"):
        espnet_todm.load_supernet(tmp_path)
    shutil.copyfile(trained / "exp/train_todm_fbank_char/config.yaml", tmp_path / "config.yaml")
    with pytest.raises(UserError, match=r"valid\.loss\.best\.pth"):
        espnet_todm.load_supernet(tmp_path)
    with pytest.raises(AttributeError, match="Speech3Text"):
        getattr(espnet_todm, "Speech3Text")  # noqa: B009


def test_a_model_with_a_front_end_takes_samples(tmp_path: Path) -> None:
    changes = {"frontend": "default", "frontend_conf": {"fs": 8000, "n_mels": 20}, "input_size": None}
    folder = write_experiment(tmp_path / "exp", changes=changes, features=20)
    model = espnet_todm.load_supernet(folder / "config.yaml", folder / "model.pth").subnet("small")
    samples = np.random.default_rng(0).normal(scale=0.1, size=8000).astype(np.float32)
    soundfile.write(tmp_path / "slow.wav", samples, 8000, subtype="FLOAT")
    assert torch.equal(model.features(tmp_path / "slow.wav"), torch.from_numpy(samples))
    assert model.transcribe(samples) == model.transcribe(tmp_path / "slow.wav")
