"""The unpacked features on a device, as batches that are a function of (seed, step)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from benchmarks.gpu.features import Utterance, read_corpus
from espnet_todm.models.batch import Batch
from espnet_todm.util.acoustics import FRAMES_PER_SECOND
from espnet_todm.util.files import PathLike, atomic_path, make_folder, write_json

TOKENS = ["<blank>", "<unk>", "<space>", *"'ABCDEFGHIJKLMNOPQRSTUVWXYZ", "<sos/eos>"]
_IDS = {" ": 2, **{letter: number for number, letter in enumerate(TOKENS)}}
TEMPOS = (0.9, 1.0, 1.1)


def unpack(packed: PathLike, folder: Path) -> None:
    """Decode a file of features once, for all processes: arrays that they map into memory. Does nothing if it is done."""
    index = make_folder(folder) / "index.json"
    if index.is_file():
        return
    corpus = read_corpus(packed)
    train = np.concatenate([u.features for u in next(iter(corpus.values()))])
    for split, utterances in corpus.items():
        with atomic_path(folder / f"{split}.npy") as temporary, temporary.open("wb") as file:
            np.save(
                file, np.concatenate([u.features for u in utterances]).astype(np.float16)
            )  # exact: multiples of a step
    splits = {split: [[u.name, u.text, len(u.features)] for u in utterances] for split, utterances in corpus.items()}
    write_json(index, {"mean": train.mean(0).tolist(), "std": train.std(0).tolist(), "splits": splits})


@dataclass(frozen=True)
class Split:
    """features: (frames, F) float16 of all utterances, joined; mean, std: (F,) of the training set."""

    features: Tensor
    mean: Tensor
    std: Tensor
    starts: Sequence[int]
    lengths: Sequence[int]
    texts: Sequence[str]

    def batch(self, chosen: Sequence[int], tempo: float = 1.0) -> Batch:
        """Normalised features of these utterances, played ``tempo`` times as fast, and their characters."""
        parts = [self.features[self.starts[i] : self.starts[i] + self.lengths[i]] for i in chosen]
        speech = (pad_sequence(parts, batch_first=True).float() - self.mean) / self.std
        frames = torch.tensor([self.lengths[i] for i in chosen])
        if tempo != 1.0:
            speech = F.interpolate(speech.transpose(1, 2), scale_factor=1 / tempo, mode="linear").transpose(1, 2)
            frames = (frames / tempo).long().clamp(max=speech.shape[1])
        labels = [torch.tensor([_IDS.get(letter, 1) for letter in self.texts[i]]) for i in chosen]
        text = pad_sequence(labels, batch_first=True, padding_value=-1)
        counts = torch.tensor([len(label) for label in labels])
        device = speech.device
        return Batch(speech.contiguous(), frames.to(device), text.to(device), counts.to(device))


def load(folder: Path, split: str, device: torch.device) -> Split:
    """A split of :func:`unpack`, on the device."""
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    _, texts, lengths = zip(*index["splits"][split])
    features = torch.from_numpy(np.load(folder / f"{split}.npy")).to(device)
    mean, std = (torch.tensor(index[name], device=device) for name in ("mean", "std"))
    return Split(features, mean, std.clamp(min=1e-3), [0, *np.cumsum(lengths)[:-1].tolist()], lengths, texts)


def in_batches(order: Sequence[int], lengths: Sequence[int], seconds: float) -> list[list[int]]:
    """Cut utterances, in this order, into batches of at most ``seconds`` with their padding."""
    batches: list[list[int]] = [[]]
    for utterance in order:
        longest = max(lengths[u] for u in [*batches[-1], utterance])
        if batches[-1] and longest * (len(batches[-1]) + 1) > seconds * FRAMES_PER_SECOND:
            batches.append([])
        batches[-1].append(utterance)
    return batches


def training_batches(split: Split, seconds: float, seed: int, first: int = 0) -> Iterator[Batch]:
    """Batches of update ``first``, ``first + 1``, ... Each epoch shuffles the utterances; a batch has similar lengths."""
    epoch, step = 0, 0
    while True:
        generator = np.random.default_rng([seed, epoch])
        jittered = np.asarray(split.lengths) * generator.uniform(0.9, 1.1, len(split.lengths))
        batches = in_batches(np.argsort(jittered).tolist(), split.lengths, seconds)
        tempos = generator.choice(TEMPOS, len(batches))
        for number in generator.permutation(len(batches)):
            if step >= first:
                yield split.batch(batches[number], float(tempos[number]))
            step += 1
        epoch += 1


def synthetic(utterances: int, seed: int = 0) -> dict[str, list[Utterance]]:
    """A corpus in which each letter has a fixed spectrum, for trials without speech: training, development and test set."""
    generator = np.random.default_rng(seed)
    letters = generator.normal(-6, 3, (len(TOKENS), 80))
    corpus: dict[str, list[Utterance]] = {}
    for split, count in (("train", utterances), ("dev", utterances // 4), ("test", utterances // 4)):
        corpus[split] = []
        for number in range(count):
            words = ["".join(generator.choice(list("ABCDE"), generator.integers(2, 5))) for _ in range(3)]
            sounds = np.repeat([_IDS[letter] for letter in " ".join(words)], 12)
            features = letters[sounds] + generator.normal(0, 0.7, (len(sounds), 80))
            corpus[split].append(Utterance(f"{split}-{number}", " ".join(words), features.astype(np.float32)))
    return corpus
