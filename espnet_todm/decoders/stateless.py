"""``decoder: todm_stateless``: a prediction network whose output depends on the last few labels only.

An embedding and a small grouped convolution over the labels (Ghodsi et al., 2020, doi 10.1109/ICASSP40776.2020.9054419;
as in icefall). It has no recurrent state, so it is small, fast, and easy to export.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import torch
from espnet2.asr.decoder.abs_decoder import AbsDecoder
from torch import Tensor, nn
from torch.nn import functional as F

from espnet_todm.util.checks import check_number

State = tuple[Tensor, Optional[Tensor]]


class StatelessDecoder(AbsDecoder):
    """Labels (B, L) with a leading blank -> (B, L, D): position u depends on labels u - context_size + 1 to u.

    It has the interface of ESPnet's TransducerDecoder for ESPnet's beam search.

    Args:
        vocab_size: number of tokens, including the blank.
        encoder_output_size: not used; ESPnet passes it to every decoder.
        hidden_size: D.
        context_size: number of labels that the output depends on; 1 needs no convolution.
        dropout_embed: dropout of the embedding.
        embed_pad: the blank, whose embedding is zero: it pads positions before the first label.

    Raises:
        UserError: a value is not allowed.
    """

    def __init__(
        self,
        vocab_size: int,
        encoder_output_size: int = 0,
        hidden_size: int = 320,
        context_size: int = 2,
        dropout_embed: float = 0.0,
        embed_pad: int = 0,
    ) -> None:
        super().__init__()
        check_number("decoder_conf: hidden_size", hidden_size, at_least=1, whole=True)
        check_number("decoder_conf: context_size", context_size, at_least=1, whole=True)
        check_number("decoder_conf: dropout_embed", dropout_embed, at_least=0, below=1)
        self.embed = nn.Embedding(vocab_size, hidden_size, padding_idx=embed_pad)
        self.dropout_embed = nn.Dropout(dropout_embed)
        if context_size > 1:
            groups = hidden_size // 4 if hidden_size % 4 == 0 else 1
            self.conv = nn.Conv1d(hidden_size, hidden_size, context_size, groups=groups, bias=False)
        self.context_size = context_size
        # Attributes that ESPnet's beam search reads.
        self.dunits, self.odim, self.blank_id = hidden_size, vocab_size, embed_pad
        self.device = torch.device("cpu")

    def set_device(self, device: torch.device) -> None:
        """Set the device on which the beam search's labels are created."""
        self.device = device

    def forward(self, labels: Tensor) -> Tensor:
        """labels (B, L) int64 -> (B, L, D)."""
        embedded = self.dropout_embed(self.embed(labels))
        if self.context_size == 1:
            return embedded
        history = F.pad(embedded.transpose(1, 2), (self.context_size - 1, 0))
        return F.relu(self.conv(history)).transpose(1, 2)

    def after(self, labels: Tensor) -> Tensor:
        """The last context_size labels (B, context_size) int64 -> output after the last one, (B, D)."""
        embedded = self.dropout_embed(self.embed(labels))
        if self.context_size == 1:
            return embedded.squeeze(1)
        return F.relu(self.conv(embedded.transpose(1, 2))).squeeze(2)

    # ---- ESPnet's beam search ---------------------------------------------------------------------------------------

    def init_state(self, batch_size: int) -> State:
        """A placeholder (1, B, 1) in the form that the beam search expects; there is no state."""
        return torch.zeros(1, batch_size, 1, device=self.device), None

    def select_state(self, states: State, idx: int) -> State:
        return states[0][:, idx : idx + 1], None

    def create_batch_states(self, states: State, new_states: Sequence[State], check_list: Any = None) -> State:
        return torch.cat([state[0] for state in new_states], dim=1), None

    def score(self, hyp: Any, cache: dict[Any, Tensor]) -> tuple[Tensor, State, Tensor]:
        """One hypothesis -> output (D,) after its last label, state, last label (1,)."""
        outputs, state, label = self.batch_score([hyp], hyp.dec_state, cache, True)
        return outputs[0], state, label[0]  # type: ignore[index]

    def batch_score(
        self, hyps: Sequence[Any], dec_states: State, cache: dict[Any, Tensor], use_lm: bool
    ) -> tuple[Tensor, State, Optional[Tensor]]:
        """Hypotheses (B) -> outputs (B, D) after their last labels, states, last labels (B, 1) if ``use_lm``."""
        contexts = [tuple([self.blank_id] * self.context_size + hyp.yseq)[-self.context_size :] for hyp in hyps]
        new = [context for context in dict.fromkeys(contexts) if context not in cache]
        if new:
            labels = torch.tensor(new, dtype=torch.long, device=self.device)
            cache.update(zip(new, self.after(labels)))
        outputs = torch.stack([cache[context] for context in contexts])
        last = torch.tensor([[hyp.yseq[-1]] for hyp in hyps], dtype=torch.long, device=self.device)
        return outputs, dec_states, last if use_lm else None
