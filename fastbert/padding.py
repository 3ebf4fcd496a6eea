"""Padded [batch, seq] <-> packed [rows]: the only place that knows padding.

Two layouts share every layer. *Packed*: the rows are the real tokens, one sequence after the other. *Padded rows*: all
batch_size * seqlen positions are rows, the real ones of each sequence first; padding attends but is not attended to, so
that it gets transformers' values, with shapes that depend on no value. The first is what runs; the second is for tracing
and for readers of padding positions.

B batch, S sequence, R rows.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.utils.import_utils import is_tracing

from fastbert.kernels import functional, resolve_backend
from fastbert.kernels.schedule import AttentionSchedule

LOSS_READS_PADDING = "a loss reads padding positions"
POOLER_READS_PADDING = "the pooler reads the first position, which is padding in some sequence"
TRACING = "tracing: shapes must not depend on values"


@dataclass(frozen=True)
class Layout:
    """Which position of the padded batch each row holds, and what attention derives from it.

    indices: int64 (R,), flat padded position of each row, or None where the rows are the padded batch in order.
    keep: bool (B, S), the real tokens, or None where every position is one. cu_seqlens: int32 (B + 1,). seqused_k: int32
    (B,), leading rows of each sequence that are keys, or None for all. uniform: every sequence has max_seqlen rows.
    schedule: see `scheduled`.
    """

    batch_size: int
    seqlen: int
    max_seqlen: int
    indices: Tensor | None
    keep: Tensor | None
    cu_seqlens: Tensor
    seqused_k: Tensor | None = None
    uniform: bool = False
    schedule: AttentionSchedule | None = None

    def pack(self, x: Tensor) -> Tensor:
        """(B, S, ...) -> (R, ...)."""
        flat = x.reshape(self.batch_size * self.seqlen, *x.shape[2:])
        return flat if self.indices is None else flat.index_select(0, self.indices)

    def unpack(self, x: Tensor) -> Tensor:
        """(R, ...) -> (B, S, ...), zeros where no row belongs."""
        if self.indices is not None:
            x = x.new_zeros(self.batch_size * self.seqlen, *x.shape[1:]).index_copy(0, self.indices, x)
        return x.reshape(self.batch_size, self.seqlen, *x.shape[1:])

    def real_tokens(self) -> Tensor | None:
        """bool (B, S), or None where every position is a real token: the attention mask of this batch."""
        if self.keep is not None or self.uniform:
            return self.keep
        return torch.arange(self.seqlen, device=self.cu_seqlens.device) < self.cu_seqlens.diff()[:, None]

    def scheduled(self, like: Tensor) -> "Layout":
        """The same layout with attention's schedule for states of the device and dtype of `like`."""
        layout = self.to(like.device)
        if _values_hidden(like) and resolve_backend(like) == "torch":
            schedule = AttentionSchedule(layout.cu_seqlens, self.max_seqlen, layout.seqused_k, self.uniform, None, None)
        else:
            schedule = functional.attention_schedule(
                layout.cu_seqlens, self.max_seqlen, like.shape[0], like, seqused_k=layout.seqused_k, uniform=self.uniform
            )
        return dataclasses.replace(layout, schedule=schedule)

    def to(self, device: torch.device, non_blocking: bool = False) -> "Layout":
        """The same layout on another device, for models spread over several."""
        if self.cu_seqlens.device == device:
            return self

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=non_blocking)

        schedule = self.schedule
        if schedule is not None:
            schedule = dataclasses.replace(
                schedule,
                cu_seqlens=move(schedule.cu_seqlens),
                seqused_k=move(schedule.seqused_k),
                tiles=None if schedule.tiles is None else tuple(tile.to(device) for tile in schedule.tiles),
            )
        return dataclasses.replace(
            self,
            indices=move(self.indices),
            keep=move(self.keep),
            cu_seqlens=move(self.cu_seqlens),
            seqused_k=move(self.seqused_k),
            schedule=schedule,
        )


class Plan(NamedTuple):
    """A layout and how it came about.

    reason: why padding positions are rows, or None where they are not. padding_read: they are rows for a reader of their
    values, not just for their shapes. num_outputs: True values of output_positions, or None where nobody knows them.
    """

    layout: Layout
    reason: str | None = None
    padding_read: bool = False
    num_outputs: int | None = None
    has_empty_row: bool = False


def plan_layout(
    keep: Tensor | None,
    batch_size: int,
    seqlen: int,
    device: torch.device,
    *,
    loss_positions: Tensor | None = None,
    output_positions: Tensor | None = None,
    pooled: bool = False,
) -> Plan:
    """The layout of a padded batch, at the price of at most one transfer to the host.

    keep: bool (B, S), the real tokens, or None where every position is one. loss_positions: bool (B, S), where a loss reads
    hidden states. output_positions: bool (B, S), positions to be counted. pooled: a pooler reads the first position of each
    sequence.
    """
    if _values_hidden(keep if keep is not None else device):
        return Plan(padded_rows(keep, batch_size, seqlen, device), TRACING, loss_positions is not None)
    if batch_size * seqlen == 0:
        return Plan(padded_rows(None, batch_size, seqlen, device), num_outputs=0)
    if keep is None:
        num_outputs = None if output_positions is None else int(output_positions.sum())
        return Plan(padded_rows(None, batch_size, seqlen, device), num_outputs=num_outputs)

    lengths = keep.sum(1)
    none = lengths.new_zeros(())
    longest, shortest, total, loss_reads, pooler_reads, num_outputs = torch.stack(
        [
            lengths.amax(),
            lengths.amin(),
            lengths.sum(),
            none if loss_positions is None else (loss_positions & ~keep).any().to(lengths.dtype),
            ((lengths > 0) & ~keep[:, 0]).any().to(lengths.dtype) if pooled else none,
            none if output_positions is None else output_positions.sum(),
        ]
    ).tolist()
    if total == batch_size * seqlen:
        return Plan(padded_rows(None, batch_size, seqlen, device), num_outputs=num_outputs)
    if loss_reads or pooler_reads:
        reason = LOSS_READS_PADDING if loss_reads else POOLER_READS_PADDING
        layout = padded_rows(keep, batch_size, seqlen, device)
        return Plan(layout, reason, bool(loss_reads), num_outputs, has_empty_row=shortest == 0)
    indices = torch.nonzero_static(keep.flatten(), size=total).squeeze(1)
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    return Plan(Layout(batch_size, seqlen, longest, indices, keep, cu_seqlens), num_outputs=num_outputs)


def padded_rows(keep: Tensor | None, batch_size: int, seqlen: int, device: torch.device) -> Layout:
    """The layout in which every position of the padded batch is a row, real ones first in each sequence."""
    cu_seqlens = torch.arange(batch_size + 1, dtype=torch.int32, device=device) * seqlen
    if keep is None:
        return Layout(batch_size, seqlen, seqlen, None, None, cu_seqlens, uniform=True)
    order = torch.argsort(keep.to(torch.uint8), dim=1, descending=True, stable=True)
    indices = (order + torch.arange(batch_size, device=device)[:, None] * seqlen).flatten()
    num_keys = keep.sum(1, dtype=torch.int32)
    return Layout(batch_size, seqlen, seqlen, indices, keep, cu_seqlens, num_keys, uniform=True)


def packed_layout(cu_seqlens: Tensor, max_seqlen: int, like: Tensor) -> tuple[Layout, Tensor]:
    """The layout of a batch that its caller packed, and each row's place in its sequence: no value goes to the host.

    like: (R, ...), of the device and dtype of the states to come.
    """
    layout = Layout(cu_seqlens.shape[0] - 1, max_seqlen, max_seqlen, None, None, cu_seqlens).scheduled(like)
    row = torch.arange(like.shape[0], device=cu_seqlens.device)
    sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), row.to(cu_seqlens.dtype), right=True)
    place = row - cu_seqlens.index_select(0, sequence)
    return dataclasses.replace(layout, indices=sequence * max_seqlen + place), place


def first_rows(x: Tensor, layout: Layout) -> Tensor:
    """The first row of each sequence of a packed batch, (B, ...); zeros for a sequence without rows."""
    if x.shape[0] == 0:
        return x.new_zeros(layout.batch_size, *x.shape[1:])
    starts = layout.cu_seqlens[:-1]
    rows = x.index_select(0, starts.clamp(max=x.shape[0] - 1))
    return torch.where((layout.cu_seqlens.diff() > 0)[:, None], rows, 0.0)


def _values_hidden(like: Tensor | torch.device) -> bool:
    """Whether values cannot be read on the host now: tracing, stream capture, fake and meta tensors, functorch."""
    if torch.compiler.is_compiling():
        return True
    tensor = like if isinstance(like, Tensor) else None
    device_type = like.device.type if isinstance(like, Tensor) else like.type
    return is_tracing(tensor) or device_type == "meta" or torch._C._functorch.peek_interpreter_stack() is not None
