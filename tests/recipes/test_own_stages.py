"""The recipe for speech of one's own: the data folders of an ESPnet recipe go through stages 1 to 5."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_todm.util.files import read_table
from tests.recipes.conftest import Recipe
from tests.tiny_corpus import RATE, noise, words

pytestmark = pytest.mark.recipe
SECONDS = 0.8  # of each segment


@pytest.fixture
def corpus(tmp_path: Path) -> list[object]:
    """The folders of an ESPnet recipe: relative paths, one recording of six segments in each set."""
    asr1 = tmp_path / "asr1"
    (asr1 / "downloads").mkdir(parents=True)
    for number, name in enumerate(("train", "dev", "test")):
        data = asr1 / "data" / name
        data.mkdir(parents=True)
        talk = np.concatenate([noise(SECONDS, 10 * number + one) for one in range(6)])
        soundfile.write(asr1 / "downloads" / f"{name}.wav", talk, RATE)
        names = [f"{name}-{one}" for one in range(6)]
        rows = {
            "wav.scp": [f"{name} downloads/{name}.wav"],
            "segments": [f"{u} {name} {SECONDS * i:.2f} {SECONDS * (i + 1):.2f}" for i, u in enumerate(names)],
            "text": [f"{u} {words(10 * number + i)}" for i, u in enumerate(names)],
            "utt2spk": [f"{u} {name}" for u in names],
        }
        for table, lines in rows.items():
            (data / table).write_text("\n".join(lines) + "\n")
    return ["--corpus", asr1, "--token_type", "char", "--speed_factors", "none", "--nj", 1]


def test_data_folders_of_espnet(own: Recipe, corpus: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    assert own.good(*corpus, "--stop_stage", 5).count("done in") == 5
    monkeypatch.chdir(own.folder)
    assert len(read_table("dump/fbank/train/text")) == 6
    assert set(read_table("dump/fbank/dev/utt2num_frames").values()) == {"80"}
    assert "no such folder in" in own.error(*corpus, "--valid_set", "eval", "--stop_stage", 1)
    assert "is where this command writes" in own.error("--corpus", ".", "--stop_stage", 1)
