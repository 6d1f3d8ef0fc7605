"""README.md of one size: what it is, what was measured, and how to run it. What was not measured is left blank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Optional

from espnet_todm.card import CARD, WEIGHTS, read_card
from espnet_todm.deploy.forms.registry import FORMS
from espnet_todm.espnet.config_inheritance import CONFIG
from espnet_todm.espnet.load import read_config
from espnet_todm.report.experiment import Experiment, load_experiment
from espnet_todm.scoring.scores import rate_cell
from espnet_todm.util.files import PathLike, read_optional
from espnet_todm.util.markdown import markdown_table
from espnet_todm.util.vocabulary import SENTENCEPIECE, TOKENS

_FRONT_MATTER = """---
library_name: espnet
pipeline_tag: automatic-speech-recognition
tags: [espnet, espnet_todm]
---
"""

_FEATURES = """import soundfile
from lhotse import Fbank, FbankConfig

samples, rate = soundfile.read("speech.wav", dtype="float32")  # one channel
speech = Fbank(FbankConfig(sampling_rate=rate, num_filters={bins})).extract(samples, rate)
"""
_AUDIO = """import soundfile

speech, rate = soundfile.read("speech.wav", dtype="float32")  # one channel
"""
_ESPNET = """from espnet2.bin.asr_inference import Speech2Text
from espnet2.main_funcs.pack_funcs import unpack

recogniser = Speech2Text.from_pretrained(**unpack("{name}.zip", "{name}_unpacked"), {options})
print(recogniser(speech)[0][0])
"""
_PLAIN = """import espnet_todm

model = espnet_todm.load_model("{name}")  # checks the weights against card.json
print(model.transcribe("speech.wav"))
"""

FILES = {
    WEIGHTS: "the weights; reading them runs no code",
    CONFIG: "the model's configuration, as ESPnet writes it",
    CARD: "cost, kept components, origin, and the SHA-256 of the weights",
    TOKENS: "the tokens, one a line, the first of which is number 0",
    "feats_stats.npz": "mean and variance of the features",
    SENTENCEPIECE: "sentencepiece's model of the tokens",
    **{form.format: form.about for form in reversed(FORMS)},
}


def model_card(subnet: PathLike, data: Optional[str] = None) -> str:
    """The text for the folder of a size. Scores are those of the experiment whose ``subnets/`` it lies in, if it does.

    data: what the scored data are; without it only the sets' names are told.
    Raises UserError when the folder holds no card or no config, or the experiment's files are damaged.
    """
    folder = Path(subnet)
    card, config = read_card(folder / CARD), read_config(folder / CONFIG)
    there = [name for name in FILES if name == TOKENS or (folder / name).exists()]
    sections = [
        f"# {card['name']}\n\n{description(card, config, _runs(config))}",
        "## Measured\n\n" + markdown_table(["", ""], _measured(folder, card)) + f"\n{_notes(folder, data)}",
        "## With ESPnet\n\n" + espnet_example(card, config),
        "## Without unpickling\n\n" + plain_example(card),
        *(note for form in FORMS for note in form.notes(read_optional(folder / form.format / CARD))),
        "## Files\n\n" + "".join(f"- `{name}`: {FILES[name]}\n" for name in there),
    ]
    return _FRONT_MATTER + "\n" + "\n".join(sections)


def description(card: Mapping[str, Any], config: Mapping[str, Any], runs: str = "") -> str:
    """One or two sentences on the model. runs: what runs it."""
    kind = "transducer" if config.get("model") == "todm" else "CTC/attention" if config.get("decoder") else "CTC"
    told = "; ".join(filter(None, (f"`encoder: {card['encoder']}`", runs)))
    text = (
        f"A {kind} speech recogniser with {card['vocabulary']['size']} tokens ({told}), "
        f"taken out of a supernet by `espnet_todm` {card['espnet_todm']}.\n"
    )
    tuned = card.get("fine_tuned")
    if tuned:
        training = tuned["training"]
        steps = training["max_epoch"] * training["num_iters_per_epoch"]
        text += (
            f"After that it was trained on by itself: {steps} batches from `{tuned['from']['name']}`, "
            f"{training['optim']} with a rate of up to {training['optim_conf'].get('lr')}.\n"
        )
    return text


def _runs(config: Mapping[str, Any]) -> str:
    return "ESPnet loads it as it is" if _is_stock(config) else "ESPnet loads it where `espnet_todm` is installed"


def _measured(folder: Path, card: Mapping[str, Any]) -> Iterator[list[str]]:
    """Rows of the table: what, and how much."""
    speed = read_optional(folder / "rtf.json")
    yield from cost_rows(card)
    yield [f"size of {WEIGHTS}", f"{(folder / WEIGHTS).stat().st_size / 1e6:.2f} MB"]
    yield ["real-time factor, median", f"{speed['rtf_median']:.4f}" if "rtf_median" in speed else ""]
    yield ["real-time factor, 95th percentile", f"{speed['rtf_p95']:.4f}" if "rtf_p95" in speed else ""]
    yield from score_rows(folder)


def cost_rows(card: Mapping[str, Any]) -> Iterator[list[str]]:
    """Rows of a table of what was measured: the costs of a size."""
    cost = card["cost"]
    yield ["parameters", f"{cost['params'] / 1e6:.3f} M ({cost['share_of_params']:.1%} of the supernet's)"]
    flops = cost["flops_per_second"] / 1e9
    yield ["FLOPs per second of speech", f"{flops:.3f} G ({cost['share_of_flops']:.1%} of the supernet's)"]


def score_rows(folder: Path) -> Iterator[list[str]]:
    """Rows of a table of what was measured: the word error rates of a size, blank where it was not scored."""
    experiment = _experiment(folder)
    if experiment is None:
        yield ["WER [95% interval]", ""]
        return
    scores = next(size for size in experiment.sizes if size.name == folder.resolve().name).scores
    for split in experiment.splits:
        yield [f"WER {split} [95% interval]", f"{rate_cell(scores[split])} %" if split in scores else ""]


def _notes(folder: Path, data: Optional[str]) -> str:
    """Of which data the error rates are, and of which machine the real-time factors."""
    speed = read_optional(folder / "rtf.json")
    notes = data_notes(read_config(folder / CONFIG), data)
    if "rtf_median" in speed:
        machine = f"{speed.get('cpu')}, {speed.get('threads')} thread(s), {speed.get('utterances')} utterances"
        notes += f"Real-time factors of PyTorch, without computing features: {machine}.\n"
    return notes


def data_notes(config: Mapping[str, Any], data: Optional[str]) -> str:
    """Of which data the error rates are, and on which the model was trained."""
    trained = [entry[0] for entry in config.get("train_data_path_and_name_and_type") or ()][:1]
    cuts = (config.get("iterator_conf") or {}).get("train")
    notes = [f"Scored on: {data or 'the sets named above, of which nothing more was told'}."]
    notes += [f"Trained on: `{cuts}`."] if cuts else [f"Trained on: `{Path(path).parent}`." for path in trained]
    return "\n".join(notes) + "\n"


def _experiment(folder: Path) -> Optional[Experiment]:
    """The experiment that the size belongs to, if it was scored and lies in its ``subnets/``."""
    home = folder.resolve().parent
    if home.name != "subnets" or not any(home.parent.glob("decode*/*/*/score.json")):
        return None
    return load_experiment(home.parent)


def espnet_example(card: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """How ESPnet runs the packed archive ``<name>.zip``, which is beside the folder of the model."""
    register = "" if _is_stock(config) else "import espnet_todm\n\nespnet_todm.register()\n"
    code = _input(config) + "\n" + register + _ESPNET.format(name=card["name"], options=_search(config))
    return (
        f'`Speech2Text.from_pretrained("{card["name"]}.zip", ...)` does the same where `espnet_model_zoo` is installed.\n'
        f"ESPnet unpickles the weights in the archive.\n\n{_block(code)}"
    )


def plain_example(card: Mapping[str, Any]) -> str:
    """How this package runs the folder of the model, from its safetensors."""
    return _block(_PLAIN.format(name=card["name"]))


def _is_stock(config: Mapping[str, Any]) -> bool:
    """Whether no part of the model is this package's, so that ESPnet alone can build it."""
    parts = ("frontend", "specaug", "encoder", "decoder", "model")
    return not any(str(config.get(part)).startswith("todm") for part in parts)


def _input(config: Mapping[str, Any]) -> str:
    bins = config.get("input_size")
    return _FEATURES.format(bins=bins) if bins else _AUDIO


def _search(config: Mapping[str, Any]) -> str:
    """Options of Speech2Text: those of the model's kind."""
    if config.get("model") == "todm":  # a transducer
        return "beam_size=5"
    return "beam_size=10, ctc_weight=0.3" if config.get("decoder") else "beam_size=10, ctc_weight=1.0"


def _block(code: str) -> str:
    return f"```python\n{code}```\n"
