"""Three ways in: our commands, the runner module, and stock commands in an environment where the hook is on."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import venv
from importlib.abc import Loader
from pathlib import Path
from types import ModuleType

import pytest

from espnet_todm import hook
from espnet_todm.errors import UserError
from espnet_todm.util import startup
from tests.tiny_training import python

# Says whether ESPnet's ASR task knows our names, in the main process and in a spawned child; as in ESPnet's commands, what
# the child runs is defined in an imported module.
ASK = """
def ask(_=None):
    from espnet2.tasks.asr import ASRTask, encoder_choices
    names = [choices.name for choices in ASRTask.class_choices_list]
    return "todm_conformer" in encoder_choices.classes and names.count("subnet_trainer") == 1
"""
MAIN = """
import multiprocessing
from asking import ask
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print("known:", ask(), *pool.map(ask, [0]))
"""

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture
def ask(tmp_path: Path) -> Path:
    """A folder with the command ``ask_espnet``."""
    (tmp_path / "asking.py").write_text(ASK)
    (tmp_path / "ask_espnet.py").write_text(MAIN)
    return tmp_path


def with_path(folder: Path) -> str:
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))


def test_runner_registers_in_spawned_children_too(ask: Path) -> None:
    done = python(["-m", "espnet_todm.run", "-m", "ask_espnet"], PYTHONPATH=with_path(ask))
    assert "known: True True" in done.stdout, done.stderr


def test_runner_hands_arguments_on() -> None:
    done = python(
        ["-m", "espnet_todm.run", "-m", "espnet2.bin.asr_train", "--print_config", "--encoder", "todm_conformer"]
    )
    assert done.returncode == 0, done.stderr
    assert "encoder: todm_conformer" in done.stdout
    assert "linear_units: 2048" in done.stdout  # the defaults of our encoder, as for ESPnet's own
    assert "subnet_trainer: null" in done.stdout


SAY = """
import sys
from tests_beside import WORD
print(__name__, WORD, sys.argv)
"""


def test_runner_runs_scripts_as_python_does(tmp_path: Path) -> None:
    (tmp_path / "say.py").write_text(SAY)
    (tmp_path / "tests_beside.py").write_text("WORD = 'beside'")
    script = str(tmp_path / "say.py")
    for words, argv in (([script, "a", "-b"], [script, "a", "-b"]), (["-c", SAY, "a"], ["-c", "a"])):
        runs = [python([*how, *words], PYTHONPATH=with_path(tmp_path)) for how in ([], ["-m", "espnet_todm.run"])]
        assert [done.stdout for done in runs] == [f"__main__ beside {argv}\n"] * 2, runs[1].stderr
    done = python(["-m", "espnet_todm.run", "-c", ASK + "print('known:', ask())"])
    assert "known: True" in done.stdout, done.stderr


def test_runner_reads_code_from_standard_input() -> None:
    command = [sys.executable, "-m", "espnet_todm.run", "-", "a"]
    program = "import sys; print(sys.argv)"
    done = subprocess.run(command, input=program, capture_output=True, text=True, check=True, cwd=CHECKOUT)
    assert done.stdout == "['-', 'a']\n"


def test_children_that_a_script_spawns_import_the_script(tmp_path: Path) -> None:
    """Where what they run is defined in the script itself, as nothing else would find it."""
    script = tmp_path / "work.py"
    script.write_text(
        "import multiprocessing\ndef double(n):\n    return 2 * n\nif __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n        print(pool.map(double, [1, 2]))\n"
    )
    done = python(["-m", "espnet_todm.run", str(script)])
    assert done.stdout == "[2, 4]\n", done.stderr


def test_a_users_error_of_a_stock_command_is_one_line(tmp_path: Path) -> None:
    code = (
        "import espnet2.tasks.asr as asr\nfrom argparse import Namespace\n"
        "asr.ASRTask.build_model(Namespace(model='todm', postencoder='hugging_face_transformers'))"
    )
    done = python(["-m", "espnet_todm.run", "-c", code])
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: postencoder: 'hugging_face_transformers'")


def test_a_missing_script_is_named() -> None:
    done = python(["-m", "espnet_todm.run", "espnet2.bin.asr_train"])
    assert done.returncode == 1 and done.stderr.startswith("error: espnet2.bin.asr_train: no such script; usage:")


@pytest.mark.parametrize("arguments", [[], ["-m"], ["-c"], ["-x", "print(1)"], ["--help"]])
def test_runner_says_how_it_is_used(arguments: list[str]) -> None:
    done = python(["-m", "espnet_todm.run", *arguments])
    assert done.returncode == 1 and done.stderr.strip().startswith("usage:")


def test_hook_leaves_other_imports_alone() -> None:
    program = (
        "import sys; before = len(sys.meta_path)\n"
        "from espnet_todm import hook; hook.install(); hook.install()\n"
        "import json.tool, espnet2; print(len(sys.meta_path) - before, 'espnet_todm.espnet.registry' in sys.modules)"
    )
    assert python(["-c", program]).stdout.split() == ["1", "False"]


def test_hook_after_the_fact_registers_at_once() -> None:
    program = (
        "import espnet2.tasks.asr as asr; from espnet_todm import hook; hook.install()\n"
        "print('todm_conformer' in asr.encoder_choices.classes)"
    )
    assert python(["-c", program]).stdout.split()[-1] == "True"


def test_switching_on_and_off_is_idempotent(tmp_path: Path) -> None:
    site = str(tmp_path)
    assert not startup.is_on(site)
    for _ in range(2):
        assert startup.switch_on(site) and startup.is_on(site)
    assert [path.name for path in tmp_path.iterdir()] == [startup.FILE]
    for _ in range(2):
        assert not startup.switch_off(site) and not startup.is_on(site)
    assert not list(tmp_path.iterdir())


def test_default_is_the_running_environment() -> None:
    assert startup.startup_file().parent.samefile(Path(pytest.__file__).parents[1])
    assert not startup.is_on()


def test_command_reports_and_changes_the_state(tmp_path: Path) -> None:
    for action, state in (("status", "off"), ("on", "on"), ("status", "on"), ("off", "off"), ("status", "off")):
        done = python(["-m", "espnet_todm.bin.hook", action, "--site", str(tmp_path)])
        assert (done.returncode, done.stdout) == (0, f"{state}: {tmp_path / startup.FILE}\n"), done.stderr


def test_missing_and_protected_folders_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder"):
        startup.switch_on(str(tmp_path / "nowhere"))
    startup.switch_on(str(tmp_path))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("espnet_todm.util.startup.write_text", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    for action in (startup.switch_on, startup.switch_off):
        with pytest.raises(UserError, match=r"cannot be changed \(Permission denied\).*espnet_todm.run") as error:
            action(str(tmp_path))
        assert "\n" not in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is protected from root")
def test_protected_folder_for_real(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    done = python(["-m", "espnet_todm.bin.hook", "on", "--site", str(tmp_path)])
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith("error: ")


@pytest.mark.recipe
def test_stock_command_knows_our_names_in_an_environment_with_the_hook(ask: Path, tmp_path: Path) -> None:
    """A scratch environment that sees this one's packages stands for the user's."""
    home = tmp_path / "environment"
    venv.create(home, symlinks=True)
    interpreter = home / "bin" / "python"
    (site,) = (home / "lib").glob("python*/site-packages")
    packages = Path(pytest.__file__).parents[1]
    checkout = CHECKOUT
    (site / "borrowed.pth").write_text(f"{packages}\n{checkout}\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ask)}
        return subprocess.run(
            [str(interpreter), *arguments], env=environment, cwd=ask, capture_output=True, text=True, check=False
        )

    assert "known: False False" in run("-m", "ask_espnet").stdout
    assert run("-m", "espnet_todm.bin.hook", "on").returncode == 0
    assert startup.is_on(str(site))
    assert "known: True True" in run("-m", "ask_espnet").stdout
    stock = run("-m", "espnet2.bin.asr_train", "--print_config", "--encoder", "todm_conformer")
    assert "encoder: todm_conformer" in stock.stdout, stock.stderr
    (site / "borrowed.pth").write_text(f"{packages}/torch\n")  # the package is gone, the file is still there
    gone = run("-c", "print('fine')")
    assert (gone.stdout, gone.stderr) == ("fine\n", "")
    startup.switch_off(str(site))
    assert sys.prefix != str(home)


def test_an_import_that_looks_to_the_network_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is a server that takes connections and says nothing."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # which the loader changes
    with socket.create_server(("127.0.0.1", 0)) as silent:

        class Looking(Loader):
            def exec_module(self, module: ModuleType) -> None:
                with socket.create_connection(silent.getsockname()) as connection:
                    assert connection.gettimeout() == 5.0
                    connection.settimeout(0.1)  # for the test's own sake
                    with pytest.raises(TimeoutError):
                        connection.recv(1)

        before = socket.getdefaulttimeout()
        hook._RegisteringLoader(Looking()).exec_module(ModuleType("asr"))
        assert socket.getdefaulttimeout() == before
