"""Scores by weight sharing are those of extracted models, as stages 12 to 14 get them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from espnet_todm.components import Subnet
from espnet_todm.decode.decode import Decoder, decode
from espnet_todm.decode.features import read_features
from espnet_todm.deploy.extract import extract, load_supernet
from espnet_todm.errors import UserError
from espnet_todm.espnet.load import load_extracted
from espnet_todm.scoring.scores import score_tables
from espnet_todm.search.evaluate import Cached, Evaluator
from tests.conftest import random_subnet
from tests.tiny_experiment import TRANSDUCER, write_experiment

REFERENCES = {"utt0": "A B", "utt1": "CAD BEE", "utt2": "GABE"}


def evaluator(folder: Path, calibrate: bool = False, references: dict[str, str] = REFERENCES) -> Evaluator:
    supernet = load_supernet(folder / "config.yaml", folder / "model.pth")
    features = [x for _, x in read_features(folder / "feats.scp")]
    utterances = read_features(folder / "feats.scp")
    return Evaluator(supernet, utterances, references, "dev", 1.4, features if calibrate else None)


FLAVOURS = {
    "layer norm": {"conv_norm": "layer_norm"},
    "batch norm": {},
    "transducer": {"changes": TRANSDUCER, "conv_norm": "layer_norm"},
    "own output layers": {
        "changes": {"model_conf": {"ctc_weight": 1.0, "output_layers": "per_size"}}, "conv_norm": "layer_norm",
    },
}  # fmt: skip


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_scores_are_those_of_the_extracted_model(flavour: str, tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "exp", **FLAVOURS[flavour])
    of = evaluator(folder, calibrate=True)
    small = of.supernet.encoder.sizes["small"]
    for subnet in (Subnet("another_name", small.components), random_subnet(of.supernet.encoder, 3)):
        named = of.named(subnet)
        calibration = [x for _, x in read_features(folder / "feats.scp")]
        extract(of.supernet, named, tmp_path / subnet.name, calibration)
        model, config = load_extracted(tmp_path / subnet.name)
        # One by one, since with batch norm it is ESPnet's own encoder, whose convolutions see a batch's padding.
        texts = dict(decode(Decoder(model, config), read_features(folder / "feats.scp"), batch_seconds=0.1))
        assert of.transcribe(subnet) == texts
        expected = score_tables(REFERENCES, texts)
        scores = of.scores(subnet, "wer")
        assert scores["wer"] == expected.total("words").error_rate
        assert scores["cer"] == expected.total("characters").error_rate
    assert of.named(subnet).name != "small" and of.named(Subnet("x", small.components)).name == "small"


@pytest.mark.parametrize("flavour", ["layer norm", "batch norm"])
def test_the_loss_is_that_of_espnets_own_model(flavour: str, tmp_path: Path) -> None:
    folder = write_experiment(tmp_path / "exp", **FLAVOURS[flavour])
    of = evaluator(folder)
    small = of.supernet.encoder.sizes["small"]
    extract(of.supernet, small, tmp_path / "small")
    model, _ = load_extracted(tmp_path / "small")
    total = tokens = 0.0
    for name, x in read_features(folder / "feats.scp"):
        labels = torch.tensor([[of.decoder.tokens.index({" ": "<space>"}.get(c, c)) for c in REFERENCES[name]]])
        lengths = torch.tensor([len(x)]), torch.tensor([labels.size(1)])
        with torch.no_grad():
            total += float(model(x.unsqueeze(0), lengths[0], labels, lengths[1])[0])
        tokens += labels.size(1)
    assert of.loss(small) == pytest.approx(total / tokens, rel=1e-5)


def test_a_transducers_loss_is_that_of_its_validation(transducer_experiment: Path) -> None:
    of = evaluator(transducer_experiment)
    small = of.supernet.encoder.sizes["small"]
    assert 0 < of.loss(small) < 100 and of.loss(small) != of.loss(of.supernet.encoder.sizes["full"])
    total = 0.0
    for name, x in read_features(transducer_experiment / "feats.scp"):
        alone = Evaluator(of.supernet, [(name, x)], REFERENCES)
        total += alone.loss(small) * len(REFERENCES[name].replace(" ", "_"))
    assert of.loss(small) == pytest.approx(total / sum(map(len, REFERENCES.values())), rel=1e-5)


def test_batch_norm_without_calibration_is_refused_but_for_named_sizes(experiment: Path) -> None:
    of = evaluator(experiment)
    of.scores(of.supernet.encoder.sizes["small"], "wer")
    with pytest.raises(UserError, match="give --calibrate SCP"):
        of.scores(random_subnet(of.supernet.encoder, 0), "wer")


def test_a_set_is_never_scored_twice(layer_norm_experiment: Path) -> None:
    of = Cached(evaluator(layer_norm_experiment), "cer")
    subnet = random_subnet(of.evaluator.supernet.encoder, 1)
    assert of(subnet) == of(Subnet("again", subnet.components)) and of.calls == 1
    with pytest.raises(UserError, match="score: 'speed' is unknown; allowed: wer, cer, loss"):
        of.evaluator.scores(subnet, "speed")


def test_utterances_without_transcripts_are_left_out_and_one_is_needed(layer_norm_experiment: Path) -> None:
    assert set(evaluator(layer_norm_experiment, references={"utt1": "A"}).utterances) == {"utt1"}
    with pytest.raises(UserError, match="set dev: no utterance"):
        evaluator(layer_norm_experiment, references={"other": "A"})


def test_utterances_that_are_not_heard_get_an_empty_text(layer_norm_experiment: Path) -> None:
    supernet = load_supernet(layer_norm_experiment / "config.yaml", layer_norm_experiment / "model.pth")
    utterances = [("utt0", torch.zeros(0, 20)), ("utt1", torch.randn(60, 20)), ("utt2", torch.randn(3, 20))]
    of = Evaluator(supernet, utterances, REFERENCES, "dev", 0.01)
    small = supernet.encoder.sizes["small"]
    texts = of.transcribe(small)
    assert texts["utt0"] == texts["utt2"] == "" and of.loss(small) > 0
    with pytest.raises(UserError, match="set dev: no utterance is long enough for a frame and has a transcript"):
        Evaluator(supernet, utterances[:1], REFERENCES, "dev")
    with pytest.raises(UserError, match="set dev: no transcript has a word"):
        Evaluator(supernet, utterances, dict.fromkeys(REFERENCES, ""), "dev")


def test_scoring_leaves_the_model_as_it_is(layer_norm_experiment: Path) -> None:
    supernet = load_supernet(layer_norm_experiment / "config.yaml", layer_norm_experiment / "model.pth")
    before = {name: value for name, value in vars(supernet.model).items() if not name.startswith("_")}
    of = Evaluator(supernet, read_features(layer_norm_experiment / "feats.scp"), REFERENCES)
    of.loss(supernet.encoder.sizes["small"])
    after = {name: value for name, value in vars(supernet.model).items() if not name.startswith("_")}
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)
