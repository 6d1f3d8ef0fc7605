"""Selects the implementation of the transducer loss, and calls those of other packages.

These accept fewer inputs than ours: no NaN beyond the lengths; torchaudio only float32; k2 no empty transcripts and no
more labels than frames. This module adapts the inputs, so that every backend gives the same losses for the same
arguments.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from espnet_todm.errors import UserError
from espnet_todm.losses.transducer_targets import Targets
from espnet_todm.precision import compute_dtype

FULL = ("torch", "torchaudio", "k2")
PRUNED = ("torch", "k2")

_INSTALL = {
    "torchaudio": "pip install torchaudio",
    "k2": "see https://k2-fsa.github.io/k2/installation (a build for your torch), or set it to torch, which needs nothing",
}


def pick_backend(name: str, known: Sequence[str], device: torch.device) -> str:
    """The backend to use: ``name`` itself unless it is auto.

    auto selects ours on CPUs. On a GPU it selects the first other backend with a GPU kernel, if there is one: it needs
    one launch instead of two per anti-diagonal. On a CPU ours is the fastest
    (benchmarks/results/transducer_loss_k2.md).
    Raises UserError for an unknown name. For a package that is missing or does not load, the error says what to
    install.
    """
    if name == "auto":
        others = (backend for backend in known if backend != "torch" and device.type == "cuda")
        return next((backend for backend in others if _runs_on_cuda(backend)), "torch")
    if name not in known:
        raise UserError(f"transducer backend: {name!r} is unknown; allowed are auto, {', '.join(known)}")
    if name == "torch":
        return name
    if find_spec(name) is None:
        raise UserError(f"transducer backend: {name} is not installed; {_INSTALL[name]}")
    try:
        importlib.import_module(name)
    except Exception as error:  # Built for another Python or torch.
        raise UserError(f"transducer backend: {name} does not load ({error}); {_INSTALL[name]}") from None
    return name


def torchaudio_full(logits: Tensor, targets: Targets) -> Tensor:
    """torchaudio.functional.rnnt_loss on (B, T, U + 1, V), which needs T and U to be the largest lengths. Returns (B,)."""
    from torchaudio.functional import rnnt_loss

    frames, rows = max(targets.frames), max(targets.rows)
    loss: Tensor = rnnt_loss(
        _clean(logits, targets)[:, :frames, :rows].float().contiguous(),
        targets.labels[:, : rows - 1].to(torch.int32).contiguous(),
        targets.lengths.to(torch.int32),
        targets.label_lengths.to(torch.int32),
        blank=targets.blank,
        reduction="none",
    )
    return loss.to(compute_dtype(logits))


def k2_full(logits: Tensor, targets: Targets) -> Tensor:
    """k2.rnnt_loss on (B, T, U + 1, V). Returns (B,)."""
    import k2

    labels, frames = _k2_sizes(targets, logits.shape[1])
    clean = _clean(logits, targets)
    clean = torch.nn.functional.pad(
        clean, (0, 0, 0, labels.shape[1] + 1 - logits.shape[2], 0, frames - logits.shape[1])
    )
    loss: Tensor = k2.rnnt_loss(clean, labels, targets.blank, _boundary(targets), reduction="none")
    return loss


def k2_pruned(logits: Tensor, ranges: Tensor, targets: Targets) -> Tensor:
    """k2.rnnt_loss_pruned on (B, T, S, V). Returns (B,)."""
    import k2

    labels, frames = _k2_sizes(targets, logits.shape[1])
    clean = torch.nn.functional.pad(_clean(logits, targets), (0, 0, 0, 0, 0, frames - logits.shape[1]))
    ranges = torch.cat([ranges, ranges[:, -1:].expand(-1, frames - ranges.shape[1], -1)], 1)
    loss: Tensor = k2.rnnt_loss_pruned(clean, labels, ranges, targets.blank, _boundary(targets), reduction="none")
    return loss


def _clean(logits: Tensor, targets: Targets) -> Tensor:
    """(B, T, S, V) in float32 or float64, with zeros outside the utterances."""
    frames, rows = logits.shape[1:3]
    logits = logits.to(compute_dtype(logits))
    if min(targets.frames, default=frames) >= frames and min(targets.rows, default=rows) >= rows:
        return logits
    return logits.masked_fill(~targets.valid_nodes(frames)[:, :, :rows].unsqueeze(-1), 0.0)


def _k2_sizes(targets: Targets, frames: int) -> tuple[Tensor, int]:
    """Labels (B, max(U, 1)) and a number of frames that k2 accepts: at least the number of labels."""
    labels = targets.labels
    if not labels.shape[1]:
        labels = torch.full((len(labels), 1), targets.blank, device=labels.device)
    return labels, max(frames, labels.shape[1])


def _boundary(targets: Targets) -> Tensor:
    """(B, 4) int64: first label, first frame, number of labels, number of frames."""
    nothing = torch.zeros_like(targets.lengths)
    return torch.stack([nothing, nothing, targets.label_lengths, targets.lengths], 1)


def _runs_on_cuda(backend: str) -> bool:
    """Whether the package is installed and was built with a kernel for GPUs."""
    try:
        module = importlib.import_module(backend)
    except Exception:  # An installed package that does not load, such as one for another torch, is no choice.
        return False
    if backend == "k2":
        return bool(getattr(module, "with_cuda", False))
    kernel = "torchaudio::rnnt_loss_forward"
    try:
        return torch._C._dispatch_has_kernel_for_dispatch_key(kernel, "CUDA")
    except RuntimeError:  # No such operator in this build.
        return False
