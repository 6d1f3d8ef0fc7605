"""The end of stage 4 with Shar folders: every utterance once, its features unchanged, in shards for many ranks."""

from __future__ import annotations

from pathlib import Path

import kaldiio
import numpy as np
import pytest
from lhotse import CutSet

from espnet_todm.data.shar import make_shar
from espnet_todm.errors import UserError
from espnet_todm.iterators.sources import open_source
from espnet_todm.util.files import write_table
from espnet_todm.util.stage_marker import mark_complete

COUNT = 130


@pytest.fixture
def features(tmp_path: Path) -> Path:
    folder = tmp_path / "dump" / "train"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    matrices = {f"u{n:03d}": rng.standard_normal((10 + n, 80), np.float32) for n in range(COUNT)}
    kaldiio.save_ark(str(folder / "feats.ark"), matrices, scp=str(folder / "feats.scp"))
    write_table(folder / "text", {name: f"SAID {name}" for name in matrices})
    write_table(folder / "utt2spk", {name: f"s{n % 3}" for n, name in enumerate(matrices)})
    mark_complete(folder, {"stage": "filter"})
    return folder


def test_features_words_and_speakers_are_those_of_the_tables(features: Path, tmp_path: Path) -> None:
    shar = make_shar(features, tmp_path / "shar", logs=tmp_path / "logs")
    assert len(list(shar.glob("cuts.*.jsonl.gz"))) == 65  # shards of two, so that many ranks can share them
    matrices = kaldiio.load_scp(str(features / "feats.scp"))
    cuts = list(CutSet.from_shar(in_dir=shar, fields=None))
    assert sorted(cut.id for cut in cuts) == sorted(matrices) != [cut.id for cut in cuts]
    source = open_source(str(shar), "features", "train")
    for cut in source.cuts():
        assert np.array_equal(source.fill(cut).load_features(), matrices[cut.id])
        assert cut.supervisions[0].text == f"SAID {cut.id}" and cut.supervisions[0].speaker[0] == "s"
        assert cut.duration == pytest.approx(len(matrices[cut.id]) / 100)


def test_it_is_made_once_and_wants_a_completed_stage_4(
    features: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for _ in range(2):
        make_shar(features, tmp_path / "shar", logs=tmp_path)
    assert "complete already with the same options" in caplog.text
    (features / "feats.scp").unlink()
    with pytest.raises(UserError, match=r"no feats.scp in it; a Shar folder is made of features"):
        make_shar(features, tmp_path / "other", logs=tmp_path)
    with pytest.raises(UserError, match=r"nothing: not there or not complete"):
        make_shar(tmp_path / "nothing", tmp_path / "other", logs=tmp_path)
