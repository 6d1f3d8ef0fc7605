"""What a reader must know about an experiment beside its tables, as lines of text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from espnet_todm.decode.options import GREEDY
from espnet_todm.report.experiment import Experiment
from espnet_todm.scoring.scores import official_size_note
from espnet_todm.util.checks import is_number


def fact_lines(experiment: Experiment, corpus: Optional[str] = None) -> list[str]:
    """Range of the sizes, how they were decoded, and notes on the scores. corpus: see ``official_size_note``."""
    params = [size.params for size in experiment.sizes if size.params is not None]
    facts = []
    if params:
        facts.append(f"#Params: {min(params) / 1e6:.2f} M to {max(params) / 1e6:.2f} M in {len(params)} sizes")
    facts += [f"Search: {line}" for line in search_lines(experiment)]
    return facts + [f"Note: {note}" for note in _notes(experiment, corpus)]


def search_lines(experiment: Experiment) -> list[str]:
    """How each size was decoded where that was not greedy: beam, language model and scales, each said once."""
    lines = []
    for name, options in experiment.searches.items():
        if options.get("kind", GREEDY) == GREEDY:
            continue
        facts = [f"{options['kind']}, beam {options.get('beam_size')}"]
        if options.get("lm"):
            facts.append(f"language model {Path(options['lm']).parent.name}/{Path(options['lm']).name}")
            facts.append(f"its weight {options.get('lm_weight'):g}")
        facts += [
            f"{key.replace('_', ' ')} {options[key]:g}" for key in ("word_score", "prior_weight") if options.get(key)
        ]
        facts += ["closed vocabulary"] if options.get("lexicon") else []
        lines.append(f"{name}: {', '.join(facts)}")
    return lines


def _notes(experiment: Experiment, corpus: Optional[str]) -> list[str]:
    """What a reader must know about the scores, each said once."""
    notes = [official_size_note(score, corpus) for score in experiment.scores()]
    notes += [
        f"{score.split}/{score.size}: {score.missing} utterances had no hypothesis and count as empty"
        for score in experiment.scores()
        if score.missing
    ]
    return [note for note in dict.fromkeys(notes) if note is not None]


def speed_lines(experiment: Experiment) -> list[str]:
    """Where the real-time factors were measured."""
    places = []
    for size in experiment.sizes:
        speed = size.speed
        if "rtf_median" in speed:
            facts = (("threads", "threads: {}"), ("cpu", "CPU: {}"), ("utterances", "utterances: {}"))
            places.append(", ".join(text.format(speed[key]) for key, text in facts if key in speed))
    return [f"RTF measured with {place}." for place in dict.fromkeys(filter(None, places))]


def cost_lines(cost: dict[str, Any]) -> list[str]:
    """Training-cost factor against one model, as far as it was measured."""
    names = {
        "factor": ("time of a supernet step against one full model's", "{:.2f}"),
        "bound": ("the least it can be, with the part that all sizes share computed once", "{:.2f}"),
        "single_step_seconds": ("one full model's step", "{:.3f} s"),
        "supernet_step_seconds": ("supernet step", "{:.3f} s"),
    }
    lines = [f"{name}: {form.format(cost[key])}" for key, (name, form) in names.items() if is_number(cost.get(key))]
    memory = cost.get("peak_memory_mib")
    for name, value in memory.items() if isinstance(memory, dict) else ():
        if is_number(value):
            lines.append(f"peak memory, {name}: {value:.0f} MiB")
    return lines
