"""Every configuration in egs/*/conf makes a training step as it stands, and its sizes cost what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

import espnet_todm
from espnet_todm.bench.dry_run import dry_run
from espnet_todm.espnet.config_inheritance import read_config
from espnet_todm.espnet.options import parse_training
from tests.recipes.conftest import ROOT

espnet_todm.register()
EGS = ROOT / "egs"
# What is no configuration of its own: bases without sizes, plans of comparisons, and the stock model of the tutorial.
LEFT_OUT = {
    "librispeech/conf/compare_mini.yaml",
    "librispeech/conf/ortho.yaml",
    "tedlium2/conf/ortho.yaml",
    "mini/conf/ablation.yaml",
    "mini/conf/averaging.yaml",
    "mini/conf/baselines.yaml",
    "mini/conf/compare.yaml",
    "mini/conf/compare_24s.yaml",
    "mini/conf/nonspeech.yaml",
    "mini/conf/stock_conformer.yaml",
}
FOUND = sorted(str(path.relative_to(EGS)) for path in EGS.glob("*/conf/*.yaml"))


def test_nothing_else_is_left_out() -> None:
    assert set(FOUND) >= LEFT_OUT
    sizeless = {name for name in FOUND if "sizes" not in read_config(EGS / name).get("encoder_conf", {})}
    plans = {name for name in FOUND if "methods" in read_config(EGS / name)}
    assert sizeless | plans == LEFT_OUT


@pytest.mark.parametrize("name", [name for name in FOUND if name not in LEFT_OUT])
def test_a_dry_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = EGS / name
    monkeypatch.chdir(path.parents[1])  # where its run.sh stands
    config = str(Path("conf", path.name))
    options = parse_training(["--config", config, "--output_dir", "-", "--token_list", "-", "--input_size", "80"])
    done = dry_run(options, vocabulary=79, utterances=1, seconds=1.0)
    sizes, criterion = options.encoder_conf["sizes"], options.encoder_conf.get("criterion", "params")
    assert sorted(done.costs) == sorted(["full", *sizes])
    full = done.costs["full"].by(criterion)
    for size, share in sizes.items():
        if isinstance(share, float):  # within one component, at most a whole feed-forward module
            assert done.costs[size].by(criterion) / full == pytest.approx(share, abs=0.03), size
