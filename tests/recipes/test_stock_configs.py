"""A stock configuration of every kind, with the ten lines: best models, their averages and every size are there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

import espnet_todm
from espnet_todm.bin.asr_train import main
from espnet_todm.card import CARD
from espnet_todm.deploy.extract import extract, load_supernet
from espnet_todm.util.files import read_json
from tests.stock_signatures import SIGNATURES, StubFrontend, criteria, small_config
from tests.tiny_model import TOKENS

espnet_todm.register()
UTTERANCES = 8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Audio of noise, texts and shapes."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    tables: dict[str, list[str]] = {"wav.scp": [], "text": [], "speech_shape": [], "text_shape": []}
    for number in range(UTTERANCES):
        name, samples = f"utt{number}", 16000 + 800 * number
        soundfile.write(folder / f"{name}.wav", 0.1 * rng.standard_normal(samples), 16000)
        tables["wav.scp"].append(f"{name} {folder / name}.wav")
        tables["text"].append(f"{name} {''.join(rng.choice(list('abcdefg'), 3))}")
        tables["speech_shape"].append(f"{name} {samples}")
        tables["text_shape"].append(f"{name} 3,{len(TOKENS)}")
    for table, rows in tables.items():
        (folder / table).write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "tokens.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    return folder


def options(data: Path, config: Path, output: Path) -> list[str]:
    """Of the training command, as asr.sh passes them."""
    given = ["--config", str(config), "--output_dir", str(output), "--ngpu", "0", "--use_preprocessor", "true"]
    given += ["--token_type", "char", "--token_list", str(data / "tokens.txt"), "--resume", "true"]
    for kind in ("train", "valid"):
        for table, name, form in (("wav.scp", "speech", "sound"), ("text", "text", "text")):
            given += [f"--{kind}_data_path_and_name_and_type", f"{data / table},{name},{form}"]
            given += [f"--{kind}_shape_file", f"{data / name}_shape"]
    return given


@pytest.mark.parametrize("signature", SIGNATURES)
def test_two_epochs(signature: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from espnet2.tasks.asr import frontend_choices

    monkeypatch.setitem(frontend_choices.classes, "s3prl", StubFrontend)
    config, experiment = tmp_path / "train.yaml", tmp_path / "exp"
    config.write_text(yaml.safe_dump(small_config(signature)), encoding="utf-8")
    main(options(data, config, experiment))
    for phase, name, _ in criteria(signature):
        if phase == "train" or (name == "acc" and "att" not in signature):
            continue
        assert (experiment / f"{phase}.{name}.best.pth").is_file(), name
        average = experiment / f"{phase}.{name}.ave.pth"
        assert average.is_file(), name
        supernet = load_supernet(experiment / "config.yaml", average)
        for size, subnet in supernet.encoder.sizes.items():
            extract(supernet, subnet, tmp_path / name / size)
            assert read_json(tmp_path / name / size / CARD)["cost"]["params"] > 0
    assert len(list(experiment.glob("[0-9]*epoch.pth"))) >= 1
