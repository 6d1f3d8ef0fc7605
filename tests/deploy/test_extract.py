"""Extracted models compute what the supernet's slices compute, and load where they should."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from espnet_todm.bin.extract import main
from espnet_todm.card import read_card
from espnet_todm.decode.decode import Decoder
from espnet_todm.decode.features import read_features
from espnet_todm.decode.options import SearchOptions
from espnet_todm.deploy.extract import calibration_fronts, extract, load_supernet, pick_subnets
from espnet_todm.errors import UserError
from espnet_todm.espnet.load import load_checkpoint, load_extracted
from espnet_todm.util.files import write_json
from tests.conftest import disturb
from tests.tiny_experiment import ENCODERS, TRANSDUCER, write_experiment


def encode(model, features: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.ctc.log_softmax(model.encode(features[None].clone(), torch.tensor([len(features)]))[0])


def supernet_of(folder: Path):
    return load_supernet(folder / "config.yaml", folder / "model.pth")


@pytest.mark.parametrize("size", ["full", "small", "uneven"])
def test_extracted_model_equals_the_slice_from_features_to_posteriors(experiment: Path, tmp_path, size: str) -> None:
    supernet = supernet_of(experiment)
    subnet = supernet.encoder.find_subnet(size)
    card = extract(supernet, subnet, tmp_path / size)
    model, _ = load_extracted(tmp_path / size)
    supernet.encoder.subnet = subnet
    for _, features in read_features(experiment / "feats.scp"):
        torch.testing.assert_close(encode(model, features), encode(supernet.model, features), atol=1e-5, rtol=1e-5)
    assert card["cost"]["params"] == sum(p.numel() for p in model.parameters())
    assert card == read_card(tmp_path / size / "card.json")
    assert card["encoder"] == ("todm_conformer" if size == "uneven" else "conformer")


@pytest.mark.parametrize(("name", "small"), [("todm_e_branchformer", "e_branchformer"), ("todm_mh_ssm", "todm_mh_ssm")])
def test_every_encoder_is_extracted_under_its_own_name(tmp_path: Path, name: str, small: str) -> None:
    supernet = supernet_of(write_experiment(tmp_path / "experiment", name))
    for size, encoder in (("small", small), ("uneven", name)):
        card = extract(supernet, supernet.encoder.find_subnet(size), tmp_path / size)
        model, config = load_extracted(tmp_path / size)
        assert card["encoder"] == config["encoder"] == encoder
        assert card["cost"]["params"] == sum(p.numel() for p in model.parameters())
        supernet.encoder.subnet = supernet.encoder.find_subnet(size)
        for _, features in read_features(tmp_path / "experiment" / "feats.scp"):
            torch.testing.assert_close(encode(model, features), encode(supernet.model, features), atol=1e-5, rtol=1e-5)


def test_the_card_leads_back_to_the_same_subnet(experiment: Path, tmp_path) -> None:
    supernet = supernet_of(experiment)
    extract(supernet, supernet.encoder.find_subnet("uneven"), tmp_path / "uneven")
    (again,) = pick_subnets(supernet, [str(tmp_path / "uneven" / "card.json")])
    assert again == supernet.encoder.find_subnet("uneven")


def test_both_weight_files_hold_the_same(experiment: Path, tmp_path) -> None:
    supernet = supernet_of(experiment)
    extract(supernet, supernet.encoder.find_subnet("small"), tmp_path / "small")
    safe, pickled = load_file(tmp_path / "small/model.safetensors"), torch.load(tmp_path / "small/model.pth")
    assert safe.keys() == pickled.keys() and all(torch.equal(safe[k], pickled[k]) for k in safe)


PLAIN = """
import sys, torch
from espnet2.bin.asr_inference import Speech2Text
import kaldiio
decode = Speech2Text(asr_train_config=sys.argv[1] + "/config.yaml", asr_model_file=sys.argv[1] + "/model.pth",
                     ctc_weight=1.0, beam_size=1)
assert not [name for name in sys.modules if name.startswith("espnet_todm")], "the plug-in was loaded"
for name, features in kaldiio.load_scp(sys.argv[2]).items():
    encoded = decode.asr_model.encode(torch.tensor(features)[None], torch.tensor([len(features)]))[0]
    print(name, decode.asr_model.ctc.argmax(encoded)[0].tolist())
    assert decode(features) is not None
"""


def test_plain_espnet_decodes_a_uniform_size_without_the_plug_in(experiment: Path, tmp_path) -> None:
    supernet = supernet_of(experiment)
    extract(supernet, supernet.encoder.find_subnet("small"), tmp_path / "small")
    command = [sys.executable, "-c", PLAIN, str(tmp_path / "small"), str(experiment / "feats.scp")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    supernet.encoder.subnet = supernet.encoder.find_subnet("small")
    expected = {n: encode(supernet.model, x).argmax(-1)[0].tolist() for n, x in read_features(experiment / "feats.scp")}
    lines = [line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith("utt")]  # ESPnet prints, too
    assert {name: json.loads(path) for name, path in lines} == expected


def test_a_budget_with_batch_norm_needs_calibration_data(experiment: Path, tmp_path) -> None:
    supernet = supernet_of(experiment)
    full = supernet.model.component_table().cost(supernet.encoder.sizes["full"]).params
    (subnet,) = pick_subnets(supernet, params=[f"{0.6 * full / 1000:.2f}K"])
    with pytest.raises(UserError, match="--calibrate"):
        extract(supernet, subnet, tmp_path / "budget")
    assert list(tmp_path.iterdir()) == []
    card = extract(supernet, subnet, tmp_path / "budget", (x for _, x in read_features(experiment / "feats.scp")))
    assert 0.5 < card["cost"]["share_of_params"] <= 0.6
    state = load_file(tmp_path / "budget/model.safetensors")
    means = [value for name, value in state.items() if name.endswith("conv_module.norm.running_mean")]
    assert means and all(value.abs().max() > 0 for value in means)


def test_a_budget_is_cut_as_shares_are(tmp_path: Path) -> None:
    made = write_experiment(tmp_path, share_shape="ffn_first", sizes={"small": 0.6})
    supernet = supernet_of(made)
    table = supernet.model.component_table()
    (subnet,) = pick_subnets(supernet, params=[f"{0.9 * table.amount(table.full(), 'params') / 1000:.2f}K"])
    missing = table.full().components - subnet.components
    assert missing and all(key.module == "feed_forward" for key in missing)


def test_calibration_goes_without_utterances_too_short_for_a_frame(experiment: Path) -> None:
    supernet = supernet_of(experiment)
    short, long = torch.randn(2, supernet.encoder.input_size), torch.randn(40, supernet.encoder.input_size)
    fronts = list(calibration_fronts(supernet.model, supernet.encoder, [short, long, short[:0]]))
    assert [int(subsampled.lengths) for subsampled in fronts] == [supernet.encoder.subsampled(40)]
    with pytest.raises(UserError, match="--calibrate: no utterance is long enough"):
        list(calibration_fronts(supernet.model, supernet.encoder, [short]))


def test_a_model_on_audio_is_calibrated_on_audio(tmp_path: Path) -> None:
    changes = {"frontend": "todm_fbank", "frontend_conf": {"n_mels": 20}, "input_size": None}
    supernet = supernet_of(write_experiment(tmp_path, changes=changes))
    audio = torch.randn(16000) / 10
    (front,) = calibration_fronts(supernet.model, supernet.encoder, [audio, audio[:100]])
    assert int(front.lengths) == supernet.encoder.subsampled(100)


def test_the_command_writes_budgets_and_sizes(layer_norm_experiment: Path, tmp_path, capsys) -> None:
    source = ["--asr_train_config", str(layer_norm_experiment / "config.yaml")]
    source += ["--asr_model_file", str(layer_norm_experiment / "model.pth"), "--output", str(tmp_path / "out")]
    main([*source, "--sizes", "small", "--flops", "2M"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["flops_2M", "small"]
    assert read_card(tmp_path / "out/flops_2M/card.json")["cost"]["flops_per_second"] <= 2e6
    assert "small: 0.0" in capsys.readouterr().out
    main(source)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"flops_2M", "small", "full", "uneven"}


def test_a_moved_folder_still_loads(experiment: Path, tmp_path) -> None:
    supernet = supernet_of(experiment)
    extract(supernet, supernet.encoder.find_subnet("small"), tmp_path / "small")
    (tmp_path / "small").rename(tmp_path / "moved")
    model, config = load_extracted(tmp_path / "moved")
    assert model.normalize is not None and "moved" in config["normalize_conf"]["stats_file"]


def test_a_size_that_is_not_there_is_named(experiment: Path) -> None:
    with pytest.raises(UserError, match=r"'tiny'.*full.*small"):
        pick_subnets(supernet_of(experiment), ["tiny"])


def test_an_infeasible_budget_says_what_is_feasible(experiment: Path) -> None:
    for text in ("1", "1G"):
        with pytest.raises(UserError, match=r"infeasible; this supernet allows .* to "):
            pick_subnets(supernet_of(experiment), params=[text])


def damaged(folder: Path, tmp_path: Path, **changes) -> Path:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_a_checkpoint_of_other_dimensions_is_refused(experiment: Path, tmp_path) -> None:
    for changes, words in (
        ({"encoder_conf": {"linear_units": 64}}, "another shape"),
        ({"encoder_conf": {"num_blocks": 5, "sizes": {"small": {"depth": 0.5}}}}, "lacks"),
        ({"encoder_conf": {"use_cnn_module": False}}, "unasked"),
    ):
        with pytest.raises(UserError, match=words):
            load_checkpoint(damaged(experiment, tmp_path, **changes), experiment / "model.pth")


def test_damaged_files_are_named(experiment: Path, tmp_path) -> None:
    broken = tmp_path / "broken.pth"
    broken.write_bytes((experiment / "model.pth").read_bytes()[:200])
    with pytest.raises(UserError, match=r"broken\.pth: not a readable checkpoint"):
        load_checkpoint(experiment / "config.yaml", broken)
    with pytest.raises(UserError, match="no such checkpoint"):
        load_checkpoint(experiment / "config.yaml", tmp_path / "nothing.pth")
    with pytest.raises(UserError, match="no such config"):
        load_checkpoint(tmp_path / "nothing.yaml", broken)
    supernet = supernet_of(experiment)
    extract(supernet, supernet.encoder.find_subnet("small"), tmp_path / "small")
    weights = tmp_path / "small/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        load_extracted(tmp_path / "small")


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (
            lambda text: "encoder_conf: [1]\n" + text.replace("encoder_conf:", "x:"),
            r"yaml: encoder_conf: \[1\], but a map",
        ),
        (
            lambda text: "token_list: /etc/passwd\n" + text.replace("token_list:", "x:"),
            r"yaml: token_list: '/etc/passwd', but",
        ),
        (lambda text: text.replace("ctc_conf:", "ctk_conf:"), r"model\.pth: its config has no ctc_conf; it is damaged"),
        (lambda text: text.replace("token_type:", "x:"), r"model\.pth: its config has no token_type; it is damaged"),
        (lambda text: "\xff".encode("latin-1") + text.encode(), r"config\.yaml:1: not UTF-8"),
    ],
)
def test_a_damaged_config_is_one_line(experiment: Path, tmp_path: Path, damage: Callable, line: str) -> None:
    shutil.copytree(experiment, tmp_path / "exp")
    path = tmp_path / "exp/config.yaml"
    changed = damage(path.read_text(encoding="utf-8"))
    path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    with pytest.raises(UserError, match=line) as error:
        load_checkpoint(path, tmp_path / "exp/model.pth")
    assert "\n" not in str(error.value)


def test_missing_statistics_are_named(experiment: Path, tmp_path) -> None:
    config = damaged(experiment, tmp_path, normalize_conf={"stats_file": "gone/stats.npz"})
    with pytest.raises(UserError, match=r"stats_file names gone/stats\.npz"):
        load_checkpoint(config, experiment / "model.pth")


def test_a_model_that_is_no_supernet_is_refused(experiment: Path, tmp_path) -> None:
    supernet = supernet_of(experiment)
    extract(supernet, supernet.encoder.find_subnet("uneven"), tmp_path / "uneven")
    with pytest.raises(UserError, match="model: 'espnet' with encoder: todm_conformer is no supernet"):
        load_supernet(tmp_path / "uneven/config.yaml", tmp_path / "uneven/model.pth")


def test_a_file_that_is_no_card_is_refused(tmp_path) -> None:
    write_json(tmp_path / "card.json", {"format": "something else"})
    with pytest.raises(UserError, match="not a card"):
        read_card(tmp_path / "card.json")


def test_an_interrupted_extraction_leaves_the_old_one_whole(experiment: Path, tmp_path, monkeypatch) -> None:
    supernet = supernet_of(experiment)
    extract(supernet, supernet.encoder.find_subnet("small"), tmp_path / "out")
    before = (tmp_path / "out/model.safetensors").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("espnet_todm.deploy.folder.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        extract(supernet, supernet.encoder.find_subnet("full"), tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_transducer_decodes_as_its_slice(transducer_experiment: Path, tmp_path: Path) -> None:
    config, checkpoint = transducer_experiment / "config.yaml", transducer_experiment / "model.pth"
    supernet = load_supernet(config, checkpoint)
    card = extract(supernet, supernet.encoder.find_subnet("small"), tmp_path / "small")
    small, conf = load_extracted(tmp_path / "small")
    assert conf["model"] == "todm" and conf["subnet_trainer"] == "single"
    assert card["cost"]["params"] == sum(p.numel() for p in small.parameters())
    slices, _ = load_checkpoint(config, checkpoint)
    slices.encoder.subnet = slices.encoder.find_subnet("small")
    utterances = [x for _, x in read_features(transducer_experiment / "feats.scp")]
    for search in (SearchOptions(), SearchOptions("default", 3)):
        texts = [Decoder(model, conf, search)(utterances) for model in (slices, small)]
        assert texts[0] == texts[1] and any(texts[0])


@pytest.mark.parametrize("name", ENCODERS)
def test_what_a_size_owns_is_folded(tmp_path: Path, name: str) -> None:
    """Its norms, branch scales, output layer and joiner; the model keeps the form that it has without them."""
    own = {"own_affine": True, "own_branch_scale": 1.0}
    for part, changes in (("ctc", {"model_conf": {"ctc_weight": 1.0}}), ("transducer", TRANSDUCER)):
        changes = {**changes, "model_conf": {**changes["model_conf"], "output_layers": "per_size"}}
        supernet = supernet_of(write_experiment(tmp_path / part, name, changes, **own))
        for module in (supernet.model.size_outputs, supernet.model.size_joints):
            disturb(module)
        subnet = supernet.encoder.find_subnet("small")
        card = extract(supernet, subnet, tmp_path / part / "small")
        small, config = load_extracted(tmp_path / part / "small")
        assert card["cost"]["params"] == sum(p.numel() for p in small.parameters())
        plain = extract(
            supernet_of(write_experiment(tmp_path / f"plain {part}", name, changes)), subnet, tmp_path / "plain"
        )
        assert card["encoder"] == plain["encoder"] and card["cost"] == plain["cost"]
        supernet.model.load_state_dict({**supernet.model.state_dict(), **supernet.model.outer_state(subnet)})
        supernet.encoder.select("small")
        utterances = [x for _, x in read_features(tmp_path / part / "feats.scp")]
        for features in utterances if part == "ctc" else ():
            torch.testing.assert_close(encode(small, features), encode(supernet.model, features), atol=1e-5, rtol=1e-5)
        texts = [Decoder(model, config)(utterances) for model in (supernet.model, small)]
        assert texts[0] == texts[1]
