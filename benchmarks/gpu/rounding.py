"""What rounding the features changes for a trained CTC model: posteriors, transcripts and word error rate.

Example: python -m benchmarks.gpu.rounding egs/mini/exp/train_todm_fbank_char/subnets/full --data egs/mini/dump/fbank/test \\
    --root egs/mini
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import kaldiio
import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.features import STEP
from benchmarks.gpu.training import edits
from espnet_todm import register
from espnet_todm.util.files import read_table
from espnet_todm.util.markdown import markdown_table


def inputs(data: Path, root: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Transcript and features (T, F) of each utterance. ``root``: the folder that paths in feats.scp are relative to."""
    texts = read_table(data / "text")
    for key, place in read_table(data / "feats.scp").items():
        yield texts[key], np.asarray(kaldiio.load_mat(os.path.join(root, place)), np.float32)


def spoken(tokens: Sequence[str], log_probs: Tensor) -> str:
    """The text of the best path of log_probs (T, V)."""
    best = log_probs.argmax(-1).tolist()
    kept = [tokens[now] for before, now in zip([0, *best], best) if now not in (0, before)]
    return "".join(kept).replace("<space>", " ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of an extracted model with CTC on characters")
    parser.add_argument("--data", type=Path, required=True, help="folder with feats.scp and text")
    parser.add_argument("--root", default=Path(), type=Path, help="folder that paths in feats.scp are relative to")
    parser.add_argument("--steps", type=float, nargs="+", default=[STEP / 2, STEP, 2 * STEP], help="in nats")
    options = parser.parse_args()
    register()
    from espnet_todm.espnet.load import load_extracted

    model, _ = load_extracted(options.model)

    def log_probs(features: np.ndarray) -> Tensor:
        with torch.no_grad():  # a copy, since ESPnet normalises in place
            return model.ctc.log_softmax(model.encode(torch.tensor(features)[None], torch.tensor([len(features)]))[0])[
                0
            ]

    sums = np.zeros((len(options.steps), 5))  # frames, equal ones, divergence, errors, transcripts that differ
    words = errors = count = 0
    for text, features in inputs(options.data, options.root):
        exact = log_probs(features)
        before = spoken(model.token_list, exact)
        words, errors, count = words + len(text.split()), errors + edits(text.split(), before.split()), count + 1
        for row, step in zip(sums, options.steps):
            rounded = log_probs(np.rint(features / step) * np.float32(step))
            after = spoken(model.token_list, rounded)
            equal = exact.argmax(-1) == rounded.argmax(-1)
            divergence = (exact.exp() * (exact - rounded)).sum()
            row += [len(equal), equal.sum(), divergence, edits(text.split(), after.split()), before != after]
    header = ["rounded to", "frames of the same label", "divergence, nats per frame", "WER", "other transcripts"]
    rows = [["not", "", "", f"{100 * errors / words:.2f}", ""]]
    for (frames, equal, divergence, wrong, other), step in zip(sums, options.steps):
        shares = [f"{equal / frames:.2%}", f"{divergence / frames:.5f}", f"{100 * wrong / words:.2f}"]
        rows.append([f"{step:g} nats", *shares, f"{other:.0f} of {count}"])
    print(markdown_table(header, rows) + f"\n{words} words", end="\n")


if __name__ == "__main__":
    main()
