"""A batch on its way through the encoder: how its rows become the states that the caller gets.

Three kinds, by how the caller gives the batch: padded (B, S); packed (T,); padding-free (B, S) rows of several sequences each.

B batch, S sequence, R rows (see `layout`), T tokens, D hidden size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastbert.model.fallback.plan import pooler_verdict
from fastbert.model.fallback.verdict import Path
from fastbert.model.padding.layout import Layout, first_rows


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """A batch that its caller packed: states are rows, (T, D).

    num_outputs: number of positions whose states are wanted, or None where it is unknown. attention_mask, position_ids: of a
    padded batch, (B, S), as transformers' layers take them; None for what `layout` says.
    """

    layout: Layout
    num_outputs: int | None = None
    attention_mask: Tensor | None = None
    position_ids: Tensor | None = None

    def to_output(self, x: Tensor) -> Tensor:
        """Rows, (R, D), as the caller gets them."""
        return x

    def expose_state(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows, (R, D), as the caller gets them, and the rows to go on with, computed from those: a loss on a state that was
        returned must find it between input and output, to have a gradient there."""
        return x, x

    def pool(self, pooler: Any, x: Tensor, hidden: Tensor) -> Tensor:
        """The pooler's output, (B, D). x: last rows, (R, D). hidden: the same as the caller gets them."""
        layout = self.layout.to(x.device)
        if pooler_verdict(pooler).path is Path.TRANSFORMERS:
            return pooler(layout.unpack(x))
        return pooler(first_rows(x, layout)[:, None])


@dataclass(frozen=True, kw_only=True)
class PaddedBatch(PackedBatch):
    """A padded batch: states are (B, S, D) with zeros at padding positions, unless a loss reads those.

    padding_mask: bool (B, S, 1), padding to be zeroed because some padding positions are rows too; or None.
    """

    padding_mask: Tensor | None = None

    def to_output(self, x: Tensor) -> Tensor:
        padded = self.layout.to(x.device).unpack(x)  # (B, S, D)
        return padded if self.padding_mask is None else padded.masked_fill(self.padding_mask.to(x.device), 0.0)

    def expose_state(self, x: Tensor) -> tuple[Tensor, Tensor]:
        padded = self.to_output(x)  # (B, S, D)
        if not padded.requires_grad and not torch.jit.is_tracing():  # a trace may be trained, however it was recorded
            return padded, x
        layout = self.layout.to(x.device)
        rows = layout.pack(padded)  # (R, D)
        if self.padding_mask is not None:
            rows = torch.where(layout.pack(self.padding_mask.to(x.device)), x, rows)
        return padded, rows

    def pool(self, pooler: Any, x: Tensor, hidden: Tensor) -> Tensor:
        return pooler(hidden if self.padding_mask is None else self.layout.to(x.device).unpack(x))


@dataclass(frozen=True, kw_only=True)
class PaddingFreeBatch(PackedBatch):
    """Rows of several sequences each, in transformers' padding-free form: states are (B, S, D), one vector pooled per row."""

    batch_size: int
    seqlen: int

    def to_output(self, x: Tensor) -> Tensor:
        return x.view(self.batch_size, self.seqlen, x.shape[-1])

    def expose_state(self, x: Tensor) -> tuple[Tensor, Tensor]:
        state = self.to_output(x)
        return state, state.flatten(0, 1)

    def pool(self, pooler: Any, x: Tensor, hidden: Tensor) -> Tensor:
        return pooler(hidden)
