"""Packed models load in ESPnet and in this package, from anywhere, and what was damaged or mixed up is refused in words."""

from __future__ import annotations

import pickle
import re
import shutil
import stat
import zipfile
from pathlib import Path

import pytest
import soundfile
import torch
import yaml

from espnet_todm.bin.pack import main
from espnet_todm.bin.unpack import main as unpack_main
from espnet_todm.card import read_card
from espnet_todm.decode.decode import Decoder
from espnet_todm.decode.features import read_features
from espnet_todm.deploy.extract import extract, load_supernet
from espnet_todm.deploy.pack import pack, unpack
from espnet_todm.errors import UserError
from espnet_todm.espnet.load import load_extracted
from espnet_todm.report.model_card import model_card
from espnet_todm.scoring.scores import score_tables, write_score
from espnet_todm.util.files import hash_file, read_json, write_json
from tests.tiny_corpus import noise
from tests.tiny_experiment import write_experiment
from tests.tiny_training import python

EXPERIMENTS = [("experiment", "small"), ("experiment", "uneven"), ("transducer_experiment", "small")]


def extracted(experiment: Path, folder: Path, size: str = "small") -> Path:
    """A size in ``folder``/subnets, as stage 12 leaves it."""
    supernet = load_supernet(experiment / "config.yaml", experiment / "model.pth")
    extract(supernet, supernet.encoder.find_subnet(size), folder / "subnets" / size)
    return folder / "subnets" / size


def encode(model: torch.nn.Module, features: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.encode(features[None].clone(), torch.tensor([len(features)]))[0]


def examples(readme: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(("name", "size"), EXPERIMENTS)
def test_espnet_loads_the_archive(name: str, size: str, request: pytest.FixtureRequest, tmp_path, monkeypatch) -> None:
    from espnet2.bin.asr_inference import Speech2Text
    from espnet2.main_funcs.pack_funcs import unpack

    experiment = request.getfixturevalue(name)
    subnet = extracted(experiment, tmp_path, size)
    packed = pack(subnet, tmp_path / "out", "text\n")
    with zipfile.ZipFile(packed.archive) as archive:
        names = set(archive.namelist())
    kept = {"config.yaml", "model.safetensors", "card.json", "tokens.txt", "README.md", "feats_stats.npz"}
    assert names == kept | {"meta.yaml", "model.pth"}
    monkeypatch.chdir(tmp_path)  # ESPnet's paths are as seen from here
    files = unpack("out/" + packed.archive.name, "unpacked")
    options = {} if "transducer" in name else {"ctc_weight": 1.0}
    recogniser = Speech2Text.from_pretrained(**files, beam_size=1, **options)
    ours, _ = load_extracted(packed.folder)
    unpacked, _ = load_extracted("unpacked")
    for _, features in read_features(experiment / "feats.scp"):
        expected = encode(ours, features)
        for model in (recogniser.asr_model, unpacked):
            torch.testing.assert_close(encode(model, features), expected, atol=0, rtol=0)
        assert isinstance(recogniser(features.numpy())[0][0], str)


def test_the_examples_of_a_stock_model_run_and_the_first_without_this_package(experiment: Path, tmp_path: Path) -> None:
    subnet = extracted(experiment, tmp_path)
    pack(subnet, tmp_path / "out", model_card(subnet))
    soundfile.write(tmp_path / "out/speech.wav", noise(1.0), 16000)
    plain, ours = examples(tmp_path / "out/small/README.md")
    here = f"import os\nos.chdir({str(tmp_path / 'out')!r})\n"
    alone = "\nimport sys\nassert not [name for name in sys.modules if name.startswith('espnet_todm')]\n"
    for code in (plain + alone, ours):
        done = python(["-c", here + code])
        assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(("name", "size"), EXPERIMENTS[1:])
def test_the_examples_of_our_models_run(name: str, size: str, request, tmp_path, monkeypatch, capsys) -> None:
    subnet = extracted(request.getfixturevalue(name), tmp_path, size)
    pack(subnet, tmp_path / "out", model_card(subnet))
    soundfile.write(tmp_path / "out/speech.wav", noise(1.0), 16000)
    monkeypatch.chdir(tmp_path / "out")
    for code in examples(Path(size) / "README.md"):
        exec(code, {})
    assert capsys.readouterr().out.strip()


def test_a_released_folder_loads_from_anywhere_with_its_own_files(
    experiment: Path, tmp_path: Path, monkeypatch
) -> None:
    subnet = extracted(experiment, tmp_path)
    packed = pack(subnet, tmp_path / "out", "text\n")
    expected = {name: Decoder(*load_extracted(subnet))([x]) for name, x in read_features(experiment / "feats.scp")}
    packed.folder.rename(tmp_path / "moved")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "feats_stats.npz").write_bytes(b"of another model")
    monkeypatch.chdir(elsewhere)
    model, config = load_extracted("../moved")
    assert Path(config["normalize_conf"]["stats_file"]) == Path("../moved/feats_stats.npz")
    found = {name: Decoder(model, config)([x]) for name, x in read_features(experiment / "feats.scp")}
    assert found == expected
    assert (tmp_path / "moved/tokens.txt").read_text().splitlines() == list(model.token_list)


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(experiment: Path, tmp_path: Path) -> None:
    subnet = extracted(experiment, tmp_path)
    (subnet / "model.pth").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    load_extracted(subnet)
    packed = pack(subnet, tmp_path / "out", "text\n")
    load_extracted(packed.folder)
    assert not (tmp_path / "sprung").exists()
    with zipfile.ZipFile(packed.archive) as archive:
        archive.extract("model.pth", tmp_path)
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    assert state.keys() == load_extracted(subnet)[0].state_dict().keys()


def test_the_card_knows_its_weights(experiment: Path, tmp_path: Path) -> None:
    subnet = extracted(experiment, tmp_path)
    card = read_card(subnet / "card.json")
    assert card["weights"] == {"file": "model.safetensors", "sha256": hash_file(subnet / "model.safetensors")}
    other = extracted(experiment, tmp_path, "full")
    (subnet / "card.json").write_bytes((other / "card.json").read_bytes())
    with pytest.raises(UserError, match=r"model\.safetensors: its SHA-256 is .*, but card\.json says") as error:
        load_extracted(subnet)
    assert "\n" not in str(error.value)
    write_json(subnet / "card.json", {key: value for key, value in card.items() if key != "weights"})
    load_extracted(subnet)  # a card of before


@pytest.mark.parametrize("damage", ["truncated", "flipped", "card"])
def test_a_damaged_folder_is_refused_and_nothing_is_left(experiment: Path, tmp_path: Path, damage: str) -> None:
    subnet = extracted(experiment, tmp_path)
    weights, content = subnet / "model.safetensors", bytearray((subnet / "model.safetensors").read_bytes())
    if damage == "truncated":
        weights.write_bytes(content[:-100])
    elif damage == "flipped":
        content[-1] ^= 1
        weights.write_bytes(content)
    else:
        write_json(subnet / "card.json", {**read_json(subnet / "card.json"), "weights": "mine"})
    words = r"damaged or no safetensors file" if damage == "truncated" else r"its SHA-256 is"
    with pytest.raises(UserError, match=words):
        pack(subnet, tmp_path / "out", "text\n")
    assert not (tmp_path / "out").exists()


def test_what_is_there_stays(experiment: Path, tmp_path: Path) -> None:
    subnet = extracted(experiment, tmp_path)
    pack(subnet, tmp_path / "out", "old\n")
    with pytest.raises(UserError, match=r"out/small: exists; .*--overwrite"):
        pack(subnet, tmp_path / "out", "new\n")
    assert (tmp_path / "out/small/README.md").read_text() == "old\n"
    pack(subnet, tmp_path / "out", "new\n", overwrite=True)
    assert (tmp_path / "out/small/README.md").read_text() == "new\n"
    (tmp_path / "mine/small").mkdir(parents=True)
    with pytest.raises(UserError, match=r"mine/small: exists"):
        pack(subnet, tmp_path / "mine", "new\n", overwrite=True)
    with pytest.raises(UserError, match=r"holds .*small itself"):
        pack(subnet, subnet.parent, "new\n", overwrite=True)
    assert (subnet / "model.safetensors").is_file()


def test_the_model_card_tells_what_was_measured_and_leaves_the_rest_blank(experiment: Path, tmp_path: Path) -> None:
    subnet = extracted(experiment, tmp_path)
    before = model_card(subnet)
    assert "|WER [95% interval]||" in before and "|real-time factor, median||" in before
    score = score_tables(
        {"a": "one two three four", "b": "five"}, {"a": "one two three for", "b": "five"}, "test", "small"
    )
    for split, size in (("test", "small"), ("dev", "full")):
        folder = tmp_path / "decode" / split / size
        folder.mkdir(parents=True)
        write_score(folder / "score.json", score)
    write_json(subnet / "rtf.json", {"rtf_median": 0.0123, "rtf_p95": 0.02, "threads": 1, "cpu": "X", "utterances": 3})
    text = model_card(subnet, "two utterances")
    low, high = score.interval()
    assert f"|WER test [95% interval]|20.0 [{low:.1f}, {high:.1f}] %|" in text
    assert "|WER dev [95% interval]||" in text  # of another size only
    assert "|real-time factor, median|0.0123|" in text and "X, 1 thread(s), 3 utterances" in text
    assert "Scored on: two utterances." in text
    card = read_card(subnet / "card.json")
    assert f"|{card['cost']['params'] / 1e6:.3f} M (" in text.replace("|parameters", "")


def test_the_command_packs_into_the_folder_of_the_size(experiment: Path, tmp_path: Path, capsys) -> None:
    subnet = extracted(experiment, tmp_path)
    (subnet / "onnx").mkdir()
    (subnet / "onnx/model.onnx").write_bytes(b"onnx")
    main([str(subnet), "--data", "noise"])
    assert (subnet / "small.zip").is_file()
    assert (subnet / "small/onnx/model.onnx").read_bytes() == b"onnx"
    readme = (subnet / "small/README.md").read_text()
    assert "Scored on: noise." in readme and "- `onnx`" in readme and "- `bpe.model`" not in readme
    assert "for ESPnet" in capsys.readouterr().out


def test_asr_sh_packs_an_extracted_folder_into_what_espnet_loads(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage 14 of ESPnet's asr.sh: it names the statistics as the recipe knows them, and wants a folder of pictures."""
    from espnet2.bin.asr_inference import Speech2Text
    from espnet2.bin.pack import main as stage_14
    from espnet2.main_funcs.pack_funcs import unpack

    monkeypatch.chdir(tmp_path)
    statistics = tmp_path / "exp/asr_stats/train/feats_stats.npz"
    statistics.parent.mkdir(parents=True)
    shutil.copyfile(experiment / "feats_stats.npz", statistics)
    config = yaml.safe_load((experiment / "config.yaml").read_text())
    config["normalize_conf"]["stats_file"] = str(statistics.relative_to(tmp_path))
    (tmp_path / "exp/asr_todm/images").mkdir(parents=True)
    (tmp_path / "exp/asr_todm/images/loss.png").write_bytes(b"a curve")
    (tmp_path / "exp/asr_todm/config.yaml").write_text(yaml.safe_dump(config))
    supernet = load_supernet("exp/asr_todm/config.yaml", experiment / "model.pth")
    subnet = Path("exp/asr_todm/subnets/small")
    extract(supernet, supernet.encoder.find_subnet("small"), subnet)
    (subnet / "RESULTS.md").write_text("of stage 13\n")
    command = ["asr", "--asr_train_config", f"{subnet}/config.yaml", "--asr_model_file", f"{subnet}/model.pth"]
    command += ["--option", "exp/asr_stats/train/feats_stats.npz", "--option", f"{subnet}/RESULTS.md"]
    stage_14([*command, "--option", f"{subnet}/images", "--outpath", f"{subnet}/small_model.zip"])
    files = unpack(f"{subnet}/small_model.zip", "elsewhere")
    shutil.rmtree(tmp_path / "exp/asr_stats")
    assert (tmp_path / "elsewhere" / subnet / "images/loss.png").is_file()
    recogniser = Speech2Text.from_pretrained(**files, beam_size=1, ctc_weight=1.0)
    ours, _ = load_extracted(subnet)  # from its own copy of the statistics
    for _, features in read_features(experiment / "feats.scp"):
        torch.testing.assert_close(encode(recogniser.asr_model, features), encode(ours, features), atol=0, rtol=0)


def _rename(subnet: Path, **changes: str) -> None:
    config = yaml.safe_load((subnet / "config.yaml").read_text(encoding="utf-8"))
    (subnet / "config.yaml").write_text(yaml.safe_dump({**config, **changes}), encoding="utf-8")


@pytest.mark.parametrize("how", ["named", "named above", "linked", "onnx", "streaming-onnx"])
def test_only_files_of_the_sizes_own_folder_are_packed(experiment: Path, tmp_path: Path, how: str) -> None:
    subnet = extracted(experiment, tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("of somebody")
    if how == "named":
        _rename(subnet, bpemodel=str(secret))
    elif how == "named above":
        _rename(subnet, bpemodel=str(subnet / "../../secret"))
    elif how == "linked":
        (subnet / "bpe.model").symlink_to(secret)
        _rename(subnet, bpemodel="bpe.model")
    else:
        (subnet / how).mkdir()
        (subnet / how / "model.onnx").symlink_to(secret)
    with pytest.raises(
        UserError, match=r"is .*/secret, outside of .*small; a size is packed from files of its folder only"
    ):
        pack(subnet, tmp_path / "out", "text\n")
    assert not (tmp_path / "out").exists()


def test_extraction_copies_only_what_the_config_is_to_name(experiment: Path, tmp_path: Path) -> None:
    """A config of somebody else must not carry other files into a folder that is given away."""
    secret = tmp_path / "secret"
    secret.write_text("of somebody")
    for key, line in (("bpemodel", r"secret: no model of sentencepiece"), ("normalize_conf", r"secret: damaged")):
        value = {"stats_file": str(secret)} if key == "normalize_conf" else str(secret)
        write_experiment(tmp_path / key, changes={key: value, "normalize": None})
        supernet = load_supernet(tmp_path / key / "config.yaml", tmp_path / key / "model.pth")
        with pytest.raises(UserError, match=line):
            extract(supernet, supernet.encoder.find_subnet("small"), tmp_path / "out/small")
    assert not list((tmp_path / "out").glob("*"))


def test_what_was_packed_is_unpacked(experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subnet = extracted(experiment, tmp_path)
    packed = pack(subnet, tmp_path / "out", "text\n")
    unpack_main([str(packed.archive), "--output", str(tmp_path / "got/small")])
    assert "got/small: a model of" in capsys.readouterr().out
    expected, got = load_extracted(subnet)[0].state_dict(), load_extracted(tmp_path / "got/small")[0].state_dict()
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    with pytest.raises(UserError, match="got/small: exists"):
        unpack(packed.archive, tmp_path / "got/small")


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/out", "..\\out", "C:\\out", "a/..", "\\out"])
def test_no_name_in_an_archive_leads_out(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("config.yaml", "")
        archive.writestr(name, "out")
    with pytest.raises(UserError, match=r"a\.zip: .* in it leads out of its folder; nothing is unpacked"):
        unpack(tmp_path / "a.zip", tmp_path / "deep/in")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip"]


def test_links_in_an_archive_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("bpe.model")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match=r"'bpe\.model' in it leads out"):
        unpack(tmp_path / "a.zip", tmp_path / "in")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone"])
def test_a_damaged_archive_is_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.yaml", "encoder: conformer" * 10)
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[:60])
    elif damage == "flipped":
        path.write_bytes(content.replace(b"conformer", b"confOrmer", 1))
    else:
        path.unlink()
    with pytest.raises(UserError, match=r"a\.zip: (damaged \(BadZipFile|no such file)"):
        unpack(path, tmp_path / "in")
    assert not (tmp_path / "in").exists()


def test_a_damaged_card_is_one_line(experiment: Path, tmp_path: Path) -> None:
    subnet = extracted(experiment, tmp_path)
    card = read_json(subnet / "card.json")
    for wrong in ({key: value for key, value in card.items() if key != "cost"}, {**card, "vocabulary": 7}):
        write_json(subnet / "card.json", wrong)
        with pytest.raises(
            UserError, match=r"card\.json: damaged: (cost is None|vocabulary is 7); extract the size again"
        ):
            load_extracted(subnet)


def test_a_streaming_export_is_released_with_the_silence_that_it_needs(experiment: Path, tmp_path: Path) -> None:
    subnet = extracted(experiment, tmp_path)
    assert "## Streaming" not in model_card(subnet)
    (subnet / "streaming-onnx").mkdir()
    (subnet / "streaming-onnx/model.onnx").write_bytes(b"onnx")
    streaming = {"frames": 16, "left": 64, "chunk_seconds": 0.64, "tail_seconds": 0.69}
    write_json(subnet / "streaming-onnx/card.json", {**read_json(subnet / "card.json"), "streaming": streaming})
    packed = pack(subnet, tmp_path / "out", model_card(subnet))
    readme = (packed.folder / "README.md").read_text()
    assert "chunks of 0.64 s" in readme and "0.69 s of silence" in readme and "- `streaming-onnx`" in readme
    assert read_json(packed.folder / "streaming-onnx/card.json")["streaming"] == streaming
