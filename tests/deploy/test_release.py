"""A released folder is complete: its programs run in stock sherpa-onnx, its sums hold, and nothing in it is unpickled."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from espnet_todm.bin.release import main
from espnet_todm.deploy.extract import extract, load_supernet
from espnet_todm.deploy.onnx.export import ExportOptions, export
from espnet_todm.deploy.release import exports_of, release
from espnet_todm.deploy.runtime.opening import open_runtime
from espnet_todm.errors import UserError
from espnet_todm.report.release_card import release_card
from espnet_todm.util.files import read_json, write_json
from tests.tiny_experiment import TRANSDUCER, change_weights, write_experiment

pytest.importorskip("onnxruntime")
sherpa_onnx = pytest.importorskip("sherpa_onnx")

STREAMS = {"causal": True, "decode_chunk": [3, 5], "conv_norm": "layer_norm"}
KINDS: dict[str, dict[str, Any]] = {"ctc": {}, "transducer": TRANSDUCER}
FORMATS = ("onnx", "streaming-onnx")
LOADS = {".onnx", ".txt", ".json", ".md", ".py", ".c", ""}  # what may be in a release; none of these is unpickled


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind of model -> folder of a size, exported in both formats."""
    made = {}
    for kind, changes in KINDS.items():
        root = write_experiment(tmp_path_factory.mktemp(kind), changes=changes, features=80, **STREAMS)
        supernet = load_supernet(root / "config.yaml", root / "model.pth")
        made[kind] = root / "subnets/small"
        extract(supernet, supernet.encoder.find_subnet("small"), made[kind])
        # Fewer blanks.
        change_weights(made[kind], lambda name, value: 3 * value if "lin_out.weight" in name else value)
        for form in FORMATS:
            export(made[kind], options=ExportOptions(format=form))
    return made


@pytest.fixture(scope="module")
def released(sizes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    output = tmp_path_factory.mktemp("released")
    return {
        kind: release(exports_of(size), output / kind, release_card(exports_of(size))) for kind, size in sizes.items()
    }


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WAV file of 16-bit samples, which get louder to the end: without the tail, some words would be lost."""
    samples = np.random.default_rng(1).normal(scale=0.1, size=17000) * np.linspace(0, 1, 17000)
    path = tmp_path_factory.mktemp("speech") / "speech.wav"
    soundfile.write(path, samples, 16000, subtype="PCM_16")
    return path


def expected(folder: Path, speech: Path) -> str:
    text = open_runtime("sherpa-onnx", folder, "int8").transcribe(soundfile.read(speech, dtype="float32")[0])
    assert text
    return text


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_program_in_python_runs_anywhere(released: Any, speech: Path, kind: str, form: str, tmp_path: Path) -> None:
    """Without this package: -I leaves out PYTHONPATH and the working directory, and the check the installed one."""
    folder = shutil.copytree(released[kind] / form, tmp_path / "device")
    source = (folder / "recognize.py").read_text(encoding="utf-8")
    alone = "\nassert not [name for name in sys.modules if name.startswith(('espnet', 'torch'))]\n"
    (folder / "recognize.py").write_text(source + alone, encoding="utf-8")
    command = [sys.executable, "-I", str(folder / "recognize.py"), str(speech)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert " ".join(done.stdout.split()) == expected(released[kind] / form, speech)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_program_in_c_runs(released: Any, speech: Path, kind: str, form: str, tmp_path: Path) -> None:
    stock, compiler = Path(sherpa_onnx.__file__).parent, shutil.which("cc")
    if compiler is None or not (stock / "include/sherpa-onnx/c-api/c-api.h").is_file():
        pytest.skip("no C compiler" if compiler is None else "this sherpa-onnx comes without the header of its C API")
    folder = shutil.copytree(released[kind] / form, tmp_path / "device")
    strict = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-I", str(stock / "include")]
    subprocess.run([compiler, *strict, "-fsyntax-only", "recognize.c"], cwd=folder, check=True)
    library = stock / "lib"
    if not any(library.glob("libsherpa-onnx-c-api.*")):
        pytest.skip("this sherpa-onnx comes without the library of its C API")
    link = ["-L", str(library), "-lsherpa-onnx-c-api", f"-Wl,-rpath,{library}"]
    subprocess.run([compiler, "recognize.c", *strict, *link, "-o", "recognize"], cwd=folder, check=True)
    done = subprocess.run(["./recognize", str(speech)], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert " ".join(done.stdout.split()) == expected(folder, speech)
    for arguments, words in (([], "usage: ./recognize speech.wav"), (["none.wav"], "none.wav: needed: one channel")):
        done = subprocess.run(["./recognize", *arguments], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and words in done.stderr


def test_the_folder_is_complete_and_nothing_in_it_is_unpickled(sizes: Any, released: Any) -> None:
    graphs = ["decoder", "encoder", "joiner"]
    for kind, parts in (("ctc", ["model"]), ("transducer", graphs)):
        names = {path.relative_to(released[kind]).as_posix() for path in released[kind].rglob("*") if path.is_file()}
        files = [f"{part}{end}" for part in parts for end in (".onnx", ".int8.onnx")]
        files += ["tokens.txt", "card.json", "recognize.py", "recognize.c"]
        assert names == {"README.md", "SHA256SUMS", *(f"{form}/{file}" for form in FORMATS for file in files)}
        assert {Path(name).suffix for name in names} <= LOADS
        for form in FORMATS:
            card = read_json(released[kind] / form / "card.json")
            assert card == read_json(sizes[kind] / form / "card.json") and card["name"] == "small"


def test_the_sums_are_those_of_all_files(released: Any, tmp_path: Path) -> None:
    program = shutil.which("sha256sum")
    if program is None:
        pytest.skip("no sha256sum here")
    folder = shutil.copytree(released["ctc"], tmp_path / "device")
    done = subprocess.run([program, "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.count(": OK\n") == len(list(folder.rglob("*.*"))), done.stdout
    (folder / "onnx/tokens.txt").write_text("<blk> 0\n")
    done = subprocess.run([program, "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "onnx/tokens.txt: FAILED" in done.stdout


def test_the_command_releases_the_licence_that_is_given(sizes: Any, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "mine.txt").write_text("All rights are mine.\n")
    output = ["--output", str(tmp_path / "out")]
    main([str(sizes["ctc"]), *output, "--license", str(tmp_path / "mine.txt"), "--data", "noise"])
    assert "out/small: to release" in capsys.readouterr().out
    readme = (tmp_path / "out/small/README.md").read_text(encoding="utf-8")
    assert "## Licence\n\nSee `LICENSE`." in readme and "Scored on: noise." in readme
    assert (tmp_path / "out/small/LICENSE").read_text() == "All rights are mine.\n"
    with pytest.raises(UserError, match=r"out/small: exists; .*--overwrite"):
        main([str(sizes["ctc"]), *output])
    main([str(sizes["ctc"]), *output, "--overwrite"])
    assert not (tmp_path / "out/small/LICENSE").exists()
    readme = (tmp_path / "out/small/README.md").read_text(encoding="utf-8")
    assert "## Licence\n\nNone was given with this release" in readme
    (tmp_path / "other/small").mkdir(parents=True)
    with pytest.raises(UserError, match=r"other/small: exists"):
        main([str(sizes["ctc"]), "--output", str(tmp_path / "other"), "--overwrite"])
    with pytest.raises(UserError, match=r"--license: .*none\.txt: no such file"):
        main([str(sizes["ctc"]), *output, "--overwrite", "--license", str(tmp_path / "none.txt")])


def spoil(size: Path, how: str) -> str:
    """Spoil a size for its release, and return what the error says of it."""
    if how == "no export":
        for form in FORMATS:
            shutil.rmtree(size / form)
        return r"small: has no export \(onnx or streaming-onnx\); write one with python -m espnet_todm\.bin\.export"
    if how == "another version":
        write_json(size / "card.json", {**read_json(size / "card.json"), "note": "extracted again"})
        return r"onnx/model\.int8\.onnx: was made of another version of the size .*; export the size again"
    if how == "damaged":
        (size / "onnx/model.int8.onnx").write_bytes(b"onnx")
        return r"onnx/model\.int8\.onnx: onnxruntime cannot load it"
    if how == "no tokens":
        (size / "streaming-onnx/tokens.txt").unlink()
        return r"streaming-onnx/tokens\.txt: no such file"
    if how == "link":
        (size / "onnx").rename(size.parent / "elsewhere")
        (size / "onnx").symlink_to(size.parent / "elsewhere")
        return r"onnx/model\.int8\.onnx: is .*elsewhere/model\.int8\.onnx, outside of"
    (size / "card.json").unlink()
    return r"small/card\.json: no such file"


@pytest.mark.parametrize("how", ["no export", "another version", "damaged", "no tokens", "link", "no card"])
def test_what_cannot_be_released_is_one_line_and_nothing_is_written(sizes: Any, tmp_path: Path, how: str) -> None:
    size = shutil.copytree(sizes["ctc"], tmp_path / "subnets/small")
    words = spoil(size, how)
    with pytest.raises(UserError, match=words) as error:
        release(exports_of(size), tmp_path / "out", "text\n")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_one_precision_is_enough(sizes: Any, tmp_path: Path) -> None:
    size = shutil.copytree(sizes["ctc"], tmp_path / "subnets/small")
    shutil.rmtree(size / "streaming-onnx")
    (size / "onnx/model.int8.onnx").unlink()
    folder = release(exports_of(size), tmp_path / "out", release_card(exports_of(size)))
    assert 'model=str(HERE / "model.onnx")' in (folder / "onnx/recognize.py").read_text(encoding="utf-8")
    assert "The programs use the fp32 files." in (folder / "README.md").read_text(encoding="utf-8")
