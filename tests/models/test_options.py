"""Parts of a configuration that a supernet cannot have: refused before anything is built, all of them in one line."""

from __future__ import annotations

import sys
from argparse import Namespace
from types import ModuleType
from typing import Any

import pytest
from espnet2.tasks.asr import ASRTask, decoder_choices, postencoder_choices, preencoder_choices

import espnet_todm
from espnet_todm.errors import UserError
from espnet_todm.models.options import ALLOWED_PARTS, LIGHTNING

espnet_todm.register()
CHOICES = {"preencoder": preencoder_choices, "postencoder": postencoder_choices, "decoder": decoder_choices}


def built(**given: Any) -> Any:
    return ASRTask.build_model(Namespace(**{"model": "todm", "encoder": "todm_conformer", **given}))


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        ({"postencoder": "hugging_face_transformers"}, ["postencoder: 'hugging_face_transformers' is not possible"]),
        ({"preencoder": "sinc"}, ["preencoder: 'sinc' is not possible in model: todm; allowed: linear"]),
        ({"decoder": "whisper"}, ["decoder: 'whisper' is not possible in model: todm; allowed: transformer,"]),
        (
            {"decoder": "transducer", "model_conf": {"transducer_multi_blank_durations": [2, 4]}},
            ["transducer_multi_blank_durations: [2, 4] are not possible in model: todm; leave them out"],
        ),
        ({"ctc_conf": {"ctc_type": "brctc"}}, ["ctc_type: 'brctc' is not possible in model: todm; allowed: builtin"]),
        (
            {
                "postencoder": "hugging_face_transformers", "preencoder": "sinc", "ctc_conf": {"ctc_type": "gtnctc"},
                "encoder_conf": {"concat_after": True},
            },
            ["preencoder: 'sinc'", "; postencoder: 'hugging", "; ctc_type: 'gtnctc'", "; concat_after: True"],
        ),
    ],
)  # fmt: skip
def test_parts_that_a_supernet_cannot_have_are_refused_at_once(given: dict[str, Any], lines: list[str]) -> None:
    with pytest.raises(UserError) as error:
        built(**given)
    assert "\n" not in str(error.value)
    assert all(line in str(error.value) for line in lines), str(error.value)


@pytest.mark.parametrize("encoder", ["contextual_block_conformer", "rnn"])
def test_another_encoder_is_refused_before_it_is_built(encoder: str) -> None:
    with pytest.raises(
        UserError, match=f"encoder: '{encoder}' is no supernet for model: todm; allowed: todm_conformer, "
    ):
        built(encoder=encoder)


@pytest.mark.parametrize("part", ALLOWED_PARTS)
def test_what_is_allowed_are_names_of_espnet(part: str) -> None:
    assert set(ALLOWED_PARTS[part]) <= CHOICES[part].classes.keys()


def test_lightning_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only while it trains: a configuration that it wrote may be read."""
    monkeypatch.setitem(sys.modules, LIGHTNING, ModuleType(LIGHTNING))
    with pytest.raises(UserError, match="use_lightning: Lightning does not tell model: todm its step"):
        built(lightning_conf={})
    monkeypatch.delitem(sys.modules, LIGHTNING)
    with pytest.raises(AttributeError):  # goes on to build, from these few options
        built(lightning_conf={})
