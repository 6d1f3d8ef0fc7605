"""Words as they come: what a stream says in the end is what a recognizer says of the whole, and pauses divide it."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from espnet_todm.bin.listen import Clock, main
from espnet_todm.deploy.listen import BLOCK, Heard, Listener, Word, speech_of
from espnet_todm.deploy.onnx.export import ExportOptions, export
from espnet_todm.deploy.onnx.folder import STREAMING_FOLDER
from espnet_todm.deploy.runtime.opening import open_runtime
from espnet_todm.errors import UserError
from tests.deploy.onnx.test_streaming import STREAMS, extracted
from tests.tiny_experiment import TRANSDUCER, change_weights, write_experiment

pytest.importorskip("sherpa_onnx")
pytest.importorskip("onnxruntime")
RATE = 16000


@pytest.fixture(scope="module", params=["ctc", "transducer"])
def subnet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a size with a streaming export in it."""
    changes = TRANSDUCER if request.param == "transducer" else {}
    folder = extracted(write_experiment(tmp_path_factory.mktemp("listen"), changes=changes, features=80, **STREAMS))
    change_weights(folder, lambda name, value: 3 * value if "lin_out.weight" in name else value)
    export(folder, options=ExportOptions(precisions=(), format=STREAMING_FOLDER))
    return folder


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    rng = np.random.default_rng(1)
    return (rng.normal(scale=0.1, size=30001) * np.hanning(30001)).astype(np.float32)


def blocks(samples: np.ndarray) -> Iterator[np.ndarray]:
    yield from (samples[start : start + BLOCK] for start in range(0, len(samples), BLOCK))


def joined(heard: list[Heard]) -> str:
    return " ".join(one.text for one in heard if one.final)


def test_the_end_is_what_the_recognizer_says_of_the_whole(subnet: Path, samples: np.ndarray) -> None:
    folder = subnet / STREAMING_FOLDER
    heard = list(Listener(folder).listen(blocks(samples)))
    assert joined(heard) == open_runtime("sherpa-onnx", folder).transcribe(samples) != ""
    assert heard[-1].final and not heard[0].final  # words come before the end
    seconds = [word.second for one in heard if one.final for word in one.words]
    assert seconds == sorted(seconds) and seconds[0] >= 0 and seconds[-1] <= len(samples) / RATE + 0.2


def test_nothing_is_heard_in_nothing(subnet: Path) -> None:
    assert list(Listener(subnet / STREAMING_FOLDER).listen([])) == []


class Stock:
    """A recognizer that finds a word in every block, and a pause after every second one."""

    def __init__(self) -> None:
        self.blocks, self.segment, self.begun = 0, 0, 0.0

    def create_stream(self) -> Any:
        return SimpleNamespace(accept_waveform=lambda *_: setattr(self, "ready", True), input_finished=lambda: None)

    def is_ready(self, stream: Any) -> bool:
        return self.ready

    def decode_stream(self, stream: Any) -> None:
        self.ready, self.segment, self.blocks = False, self.segment + 1, self.blocks + 1

    def tokens(self, stream: Any) -> list[str]:
        return [token for n in range(self.segment) for token in (f" W{n}", "X")]

    def timestamps(self, stream: Any) -> list[float]:
        return [0.1 * n for n in range(2 * self.segment)]

    def start_time(self, stream: Any) -> float:
        return self.begun

    def is_endpoint(self, stream: Any) -> bool:
        return self.segment == 2

    def reset(self, stream: Any) -> None:
        self.segment, self.begun = 0, self.begun + 2.0


def test_a_pause_makes_a_line_final_and_time_goes_on(subnet: Path) -> None:
    listener = Listener(subnet / STREAMING_FOLDER)
    listener.stock, listener._stretch = Stock(), 1.5
    heard = list(listener.listen([np.zeros(BLOCK, np.float32)] * 2))
    assert heard == [
        Heard((Word("W0X", 0.0),), False),
        Heard((Word("W0X", 0.0), Word("W1X", pytest.approx(0.3))), True),
        Heard((Word("W0X", 2.0),), False),  # in the tail
        Heard((Word("W0X", 2.0),), True),
    ]


def test_the_command_prints_final_lines_and_how_fast_it_was(
    subnet: Path, samples: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    main([str(subnet), "--wav", str(tmp_path / "a.wav")])
    printed = capsys.readouterr()
    line = printed.out.splitlines()[-1]
    assert line.split(maxsplit=1)[1] == open_runtime("sherpa-onnx", subnet / STREAMING_FOLDER).transcribe(samples)
    assert printed.err.splitlines()[-1].startswith("1.9 s of speech, ") and "the first word" in printed.err
    main([str(subnet), "--wav", str(tmp_path / "a.wav"), "--words"])
    assert [row.split()[1] for row in capsys.readouterr().out.splitlines()] == line.split()[1:]


def test_a_terminal_shows_words_before_the_line_is_final(
    subnet: Path,
    samples: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    soundfile.write(tmp_path / "a.flac", samples, RATE)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    main([str(subnet / STREAMING_FOLDER), "--wav", str(tmp_path / "a.flac")])
    shown = capsys.readouterr().out
    parts = shown.split("\r\033[K")
    assert shown.endswith("\n") and len(parts) > 3 and "\n" not in "".join(parts[:-1])


def test_standard_input_is_read_as_it_arrives(samples: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype="PCM_16")

    class Pipe(io.RawIOBase):
        """Bytes that cannot be sought in, as of a microphone's program."""

        def read(self, size: int = -1) -> bytes:
            return file.read(size)

        def seekable(self) -> bool:
            return False

        def tell(self) -> int:
            raise OSError("cannot tell")

    file.seek(0)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Pipe()))
    heard = np.concatenate(list(speech_of("-")))
    np.testing.assert_allclose(heard, samples, atol=1 / 32768)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"")))
    with pytest.raises(UserError, match="standard input: is no WAV stream"):
        list(speech_of("-"))


def test_what_the_model_does_not_hear_is_one_line(tmp_path: Path, subnet: Path) -> None:
    soundfile.write(tmp_path / "slow.wav", np.zeros(8000), 8000)
    soundfile.write(tmp_path / "stereo.wav", np.zeros((16000, 2)), RATE)
    (tmp_path / "text.wav").write_text("no audio")
    for name, words in (
        ("slow", r"has 8000 Hz and 1 channels; needed: 16000 Hz and 1 channel \(sox"),
        ("stereo", "has 16000 Hz and 2 channels"),
        ("text", "cannot be read as audio"),
        ("none", "cannot be read as audio"),
    ):
        with pytest.raises(UserError, match=rf"{name}\.wav: {words}") as error:
            list(speech_of(str(tmp_path / f"{name}.wav")))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="threads: 0"):
        Listener(subnet / STREAMING_FOLDER, threads=0)
    with pytest.raises(UserError, match=r"holds no export; python -m espnet_todm\.bin\.export --format streaming-onnx"):
        main([str(tmp_path), "--wav", "a.wav"])
    export(subnet, tmp_path / "whole", ExportOptions(precisions=()))
    with pytest.raises(UserError, match="whole: takes whole utterances; export the size with --format streaming-onnx"):
        Listener(tmp_path / "whole")


def test_speech_may_come_as_slowly_as_it_was_spoken() -> None:
    clock = Clock(blocks(np.zeros(3 * BLOCK, np.float32)), realtime=True)
    assert sum(map(len, clock)) == 3 * BLOCK and clock.speech == pytest.approx(0.3)
    assert clock.waited >= 0.2 and clock.computing < 0.3
