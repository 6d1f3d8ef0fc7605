"""Stages 10 to 15 of the recipes as a user runs them, on a few seconds of noise; and what users do wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from espnet_todm.decode.context import output_folders, parse_contexts
from espnet_todm.util.files import read_json, read_table
from tests.recipes.conftest import Recipe
from tests.tiny_corpus import write_split

pytestmark = pytest.mark.recipe

ROOT = Path(__file__).parents[2]

DATA = [
    "--train_set", "train-tiny", "--valid_set", "dev-tiny", "--test_sets", "test-tiny", "--token_size", 26,
    "--nj", 1, "--cpu_processes", 1, "--speed_factors", "none", "--asr_config", "conf/train_ci.yaml", "--asr_tag", "tiny",
]  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe that has run all its stages."""
    folder = tmp_path_factory.mktemp("recipe")
    for split in ("train-tiny", "dev-tiny", "test-tiny"):
        write_split(folder, split)
    recipe = Recipe(folder, "librispeech")
    recipe.output = recipe.good("--corpus", folder, *DATA, "--label", "noise")
    return recipe


def test_all_stages_leave_what_they_promise(done: Recipe) -> None:
    exp = done.folder / "exp" / "tiny"
    assert done.output.count("done in") == 11
    for size in ("full", "small"):
        assert {p.name for p in (exp / "subnets" / size).iterdir()} >= {
            "card.json", "config.yaml", "model.pth", "model.safetensors", "rtf.json", "feats_stats.npz", "bpe.model",
        }  # fmt: skip
        for split in ("dev-tiny", "test-tiny"):
            assert len(read_table(exp / "decode" / split / size / "text")) == 6
            assert (exp / "decode" / split / size / "score.json").is_file()
    assert json.loads((exp / "cost.json").read_text())["factor"] > 1
    report = (exp / "RESULTS.md").read_text()
    for part in ("noise", "|test-tiny", "full", "small", "RTF", "./run.sh --corpus", "asr_train"):
        assert part in report, part
    assert list((exp / "report").glob("*.png"))
    small = yaml.safe_load((exp / "subnets/small/config.yaml").read_text())
    assert small["encoder"] == "conformer" and small["encoder_conf"]["num_blocks"] == 1


def test_a_dry_run_needs_no_data_and_leaves_nothing(librispeech: Recipe) -> None:
    printed = librispeech.good("--dry_run", "true", "--asr_config", "conf/train_ci.yaml", "--asr_args", "--max_epoch 3")
    assert "|small|" in printed and "finite" in printed and "stage" not in printed
    assert not {"exp", "data", "dump", "logs"} & {path.name for path in librispeech.folder.iterdir()}
    assert "conf/none.yaml: no such file" in librispeech.error("--dry_run", "true", "--asr_config", "conf/none.yaml")
    assert "--dry_run: 'yes', but true or false" in librispeech.error("--dry_run", "yes")
    shutil.rmtree(librispeech.folder.parents[1] / "conf")
    error = librispeech.error("--dry_run", "true", "--asr_config", "conf/train_ci.yaml")
    assert "../../conf/encoder/conformer_32x2.yaml: no such file (named as base by train_ci.yaml)" in error


def test_stages_can_be_run_again_alone(done: Recipe) -> None:
    done.good(*DATA, "--stage", 12, "--stop_stage", 14, "--sizes", "small", "--nonspeech_minutes", 0.1)
    measured = json.loads((done.folder / "exp/tiny/nonspeech.json").read_text())
    assert [(row["size"], row["runtime"]) for row in measured["results"]] == [("small", "torch")]
    assert "--nonspeech_minutes: 'ten', but a number of minutes" in done.error(*DATA, "--nonspeech_minutes", "ten")
    out = done.good(*DATA, "--stage", 15, "--results", "RESULTS.md")
    assert "test-tiny" in out
    assert (done.folder / "RESULTS.md").is_file() and list((done.folder / "RESULTS").glob("*.png"))


def test_a_size_is_fine_tuned_decoded_and_scored_like_any_other(done: Recipe) -> None:
    done.good(*DATA, "--stage", 12, "--stop_stage", 14, "--sizes", "small", "--fine_tune_steps", 2)
    exp = done.folder / "exp/tiny"
    assert json.loads((exp / "subnets/small_ft/card.json").read_text())["fine_tuned"]["from"]["name"] == "small"
    assert (exp / "decode/test-tiny/small_ft/score.json").is_file()
    assert "|small_ft|" in done.good(*DATA, "--stage", 15)
    assert "--fine_tune_steps: '1'" in done.error(*DATA, "--fine_tune_steps", 1)


def test_a_finished_training_is_not_done_again(done: Recipe) -> None:
    weights = (done.folder / "exp/tiny/2epoch.pth").read_bytes()
    done.good(*DATA, "--stage", 11, "--stop_stage", 11)
    assert (done.folder / "exp/tiny/2epoch.pth").read_bytes() == weights


def test_a_killed_training_goes_on(done: Recipe) -> None:
    exp = done.folder / "exp" / "killed"
    command = ["./run.sh", *map(str, DATA), "--stage", "11", "--stop_stage", "11", "--asr_tag", "killed"]
    command += ["--asr_args", "--max_epoch 6"]
    started = subprocess.Popen(
        command, cwd=done.folder, env=done.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not (exp / "checkpoint.pth").exists() and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGKILL)
    assert started.wait() in (-signal.SIGKILL, 0)
    done.good(*command[1:])
    assert (exp / "6epoch.pth").exists()


def change(recipe: Recipe, name: str, **changes: object) -> Path:
    """A configuration over train_ci.yaml with other values."""
    path = recipe.folder / "conf" / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"base": "train_ci.yaml", **changes}))
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder": "todm_conformr"}, ["todm_conformr", "todm_conformer"]),
        ({"encoder_conf": {"ffn_chunks": 7}}, ["64", "7 chunks"]),
        ({"subnet_trainer_conf": {"random_subnet": 1}}, ["random_subnet", "random_subnets"]),
    ],
)
def test_a_wrong_configuration_ends_in_one_line(done: Recipe, changes: dict, words: list[str]) -> None:
    config = change(done, "wrong", **changes)
    ended = done.run(*DATA, "--asr_config", f"conf/{config.name}", "--asr_tag", "wrong", "--stage", 11)
    assert ended.returncode == 1 and "Traceback" not in ended.stderr
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert all(word in errors[0] for word in words), ended.stderr
    assert not list((done.folder / "exp/wrong").glob("*.pth"))


def test_a_size_that_is_not_there(done: Recipe) -> None:
    assert "'tiny' is neither a size (full, small)" in done.error(*DATA, "--stage", 12, "--sizes", "tiny")


def test_stages_without_the_ones_before(done: Recipe) -> None:
    missing = [*DATA, "--asr_tag", "never"]
    assert "never/config.yaml: no such config" in done.error(*missing, "--stage", 12)
    assert "never" in done.error(*missing, "--stage", 13)


def test_raw_audio_goes_through_the_model_stages(done: Recipe, tmp_path: Path) -> None:
    corpus = done.folder.parents[1]
    done.good("--corpus", corpus, *DATA, "--feats_type", "raw", "--asr_tag", "raw", "--stop_stage", 13)
    assert len(read_table(done.folder / "exp/raw/decode/test-tiny/small/text")) == 6


def test_raw_audio_with_the_features_of_devices_is_exported(done: Recipe) -> None:
    corpus = done.folder.parents[1]
    raw = ["--feats_type", "raw", "--asr_args", "--frontend todm_fbank", "--asr_tag", "raw_fbank", "--onnx", "fp32"]
    done.good("--corpus", corpus, *DATA, *raw, "--sizes", "small", "--stop_stage", 13)
    exp = done.folder / "exp/raw_fbank"
    assert len(read_table(exp / "decode/test-tiny/small/text")) == 6
    assert read_json(exp / "subnets/small/onnx/parity.json")["holds"] is True


def test_a_training_from_shar(done: Recipe) -> None:
    corpus = done.folder.parents[1]
    shar = ["--feats_type", "shar", "--asr_tag", "shar", "--asr_args", "--iterator_conf max_duration=20"]
    done.good("--corpus", corpus, *DATA, "--token_type", "char", *shar, "--stop_stage", 11)
    config = yaml.safe_load((done.folder / "exp/shar/config.yaml").read_text())
    assert config["iterator"] == "lhotse" and not config["train_data_path_and_name_and_type"]
    assert config["iterator_conf"] == {
        "train": "dump/shar/shards/train-tiny/shar", "valid": "dump/shar/shards/dev-tiny/shar", "max_duration": 20,
    }  # fmt: skip
    assert (done.folder / "exp/shar/2epoch.pth").exists()
    assert "goes without --token_type phone" in done.error(*DATA, *shar, "--token_type", "phone", "--stage", 4)
    assert "--feats_type: 'mfcc', but fbank, shar or raw is expected" in done.error(*DATA, "--feats_type", "mfcc")


def test_decoding_settings_of_a_file(done: Recipe) -> None:
    stage = [*DATA, "--stage", 13, "--stop_stage", 13, "--decode_config"]
    assert "chunk: 16 64 is for models trained with" in done.error(*stage, "../../conf/decode/chunks.yaml")
    assert "search: goes without --decode_config" in done.error(*stage, "conf/x.yaml", "--search", "maes")
    (done.folder / "conf/wide.yaml").write_text("search: greedy\nbeam: 3\n")
    assert "conf/wide.yaml: unknown key 'beam'; allowed: search, beam_size," in done.error(*stage, "conf/wide.yaml")
    (done.folder / "conf/wide.yaml").write_text("search: greedy\nbeam_size: 3\n")
    done.good(*stage, "conf/wide.yaml")
    heard = [read_table(done.folder / f"exp/tiny/{name}/test-tiny/small/text") for name in ("decode", "decode_wide")]
    assert heard[0] == heard[1]


def test_a_chunk_for_a_model_that_was_not_trained_on_chunks(done: Recipe) -> None:
    stage = [*DATA, "--stage", 13, "--stop_stage", 13, "--decode_chunk"]
    assert "chunk: 16 64 is for models trained with encoder_conf: chunk" in done.error(*stage, "16 64")
    assert "chunk: 'sixteen' is not possible" in done.error(*stage, "sixteen")
    assert not list((done.folder / "exp/tiny").glob("decode_chunk*"))


@pytest.mark.parametrize(
    ("chunk", "names"),
    [
        ("", ["decode"]),
        ("8 64", ["decode_chunk_8_64"]),
        ("full 32 64 8 64", ["decode_chunk_full", "decode_chunk_32_64", "decode_chunk_8_64"]),
    ],
)
def test_scoring_looks_where_decoding_writes_each_context(chunk: str, names: list[str]) -> None:
    settings = f"token_type=char search= decode_config= lm_unit=phone decode_chunk='{chunk}'; has_lm() {{ false; }}"
    script = (
        f'set -euo pipefail; . egs/common/model_stages.sh; {settings}; set_decoded; printf "%s\\n" "${{decoded[@]}}"'
    )
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == names, done.stderr
    contexts = parse_contexts(chunk.split() or None)
    assert output_folders(contexts) == names
