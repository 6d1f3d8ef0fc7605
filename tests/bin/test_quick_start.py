"""A command starts without what it does not need, and what it needs later is the same as ever."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import typeguard

from espnet_todm.bin._quick_start import delayed
from espnet_todm.util.child import child_environment

ROOT = Path(__file__).parents[2]


def half(value: int, scale: float = 0.5) -> float:
    """Half of a number."""
    return value * scale


class Counted:
    """typeguard's decorator, with the names of what it was asked to check."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, target, **options):
        self.names.append(getattr(target, "__name__", ""))
        return typeguard.typechecked(target, **options)


def test_a_function_is_made_to_check_its_arguments_at_its_first_call() -> None:
    counted = Counted()
    checked = delayed(counted)(half)
    assert counted.names == []
    assert (checked.__name__, checked.__doc__, inspect.signature(checked)) == (
        half.__name__,
        half.__doc__,
        inspect.signature(half),
    )
    assert (checked(3), checked(3, scale=2.0)) == (1.5, 6.0)
    assert counted.names == ["half"]
    if hasattr(typeguard, "TypeCheckError"):  # typeguard 3 and later
        with pytest.raises(typeguard.TypeCheckError, match='argument "value"'):
            checked("3")


def test_what_cannot_wait_is_checked_at_once() -> None:
    counted = Counted()

    class Speech:
        def seconds(self, frames: int) -> float:
            return frames / 100

    def local(frames: int) -> int:
        return frames

    for target in (Speech, local, staticmethod(half)):
        delayed(counted)(target)
    assert len(counted.names) == 3
    told = delayed(lambda target, **options: (target, options))(half, debug=True)
    assert told == (half, {"debug": True})


def in_a_command(body: str) -> str:
    """What a command prints that does this after ESPnet's ASR task was imported."""
    lines = "\n    ".join(body.strip().splitlines())
    code = f"""
import sys
from espnet_todm.bin._cli import run
def main(arguments):
    import espnet2.tasks.asr
    {lines}
run(main)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=child_environment(), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "nltk" not in done.stderr
    return done.stdout


def test_modules_that_few_runs_need_are_loaded_when_they_are_used() -> None:
    printed = in_a_command("""
import inspect, scipy
from espnet2.train import preprocessor, trainer
[inspect.getmodule(module) for module in list(sys.modules.values())]  # torch does it
print([name for name in ("g2p_en.g2p", "scipy.signal._signaltools", "numba") if name in sys.modules])
print(scipy.signal.convolve([1, 2], [1, 1]).tolist(), preprocessor.scipy.signal is scipy.signal)
from tests.tiny_model import batch, trained_by
keys = ("speech", "speech_lengths", "text", "text_lengths")
model = trained_by(ctc_weight=0.5).eval()
attentions = trainer.calculate_all_attentions(model, {key: getattr(batch(), key) for key in keys})
print(bool(attentions), "numba" in sys.modules)
""")
    assert printed.splitlines()[-3:] == ["[]", "[1, 3, 2] True", "True True"]


SPAWNING = """
import multiprocessing, sys
from espnet_todm.bin._cli import run
def loaded():
    import espnet2.tasks.asr
    print("g2p_en.g2p" in sys.modules, flush=True)
def main(arguments):
    process = multiprocessing.get_context("spawn").Process(target=loaded)
    process.start()
    process.join()
if __name__ == "__main__":
    run(main)
"""


def test_processes_that_a_command_spawns_start_quickly_too(tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text(SPAWNING)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "command.py")],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.split()[-1]) == (0, "False"), done.stderr
    assert "nltk" not in done.stderr
