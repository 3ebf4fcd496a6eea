"""Padded (B, S) <-> rows (R,): the only file that knows padding.

The rows of a packed batch are its real tokens, one sequence after the other. A padding position can be a row as well: it
comes after the real tokens of its sequence, attends to them and is not attended to, and so gets the value that transformers
gives it. The first position of each sequence is such a row where a pooler reads it; every position is one where a loss reads
any padding, and while tracing, because shapes must not depend on values.

B batch, S sequence, R rows.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils.import_utils import is_tracing

from fastbert.kernels import functional, resolve_backend
from fastbert.kernels.attention.schedule import AttentionSchedule


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
        """(R, ...) -> (B, S, ...), zeros at positions that no row holds."""
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
        if values_hidden(like) and resolve_backend(like) == "torch":
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
            cu_seqlens=self.cu_seqlens.to(device, non_blocking=non_blocking),
            seqused_k=move(self.seqused_k),
            schedule=schedule,
        )


class Plan(NamedTuple):
    """A layout, and what else is known of the batch once it is computed.

    traced: every position is a row because values could not be read. loss_reads_padding: a loss does. padding_read: a loss or
    a pooler reads padding. tokens_at_padding: see tokens_to_check of `plan_layout`. has_empty: some sequence has no real
    token. num_outputs: number of True output_positions, or None where it is unknown.
    """

    layout: Layout
    traced: bool = False
    loss_reads_padding: bool = False
    padding_read: bool = False
    tokens_at_padding: bool = False
    has_empty: bool = False
    num_outputs: int | None = None


def plan_layout(
    keep: Tensor | None,
    batch_size: int,
    seqlen: int,
    device: torch.device,
    *,
    loss_positions: Tensor | None = None,
    output_positions: Tensor | None = None,
    pooled: bool = False,
    tokens_to_check: Tensor | None = None,
) -> Plan:
    """The layout of a padded batch, with at most one transfer to the host.

    keep: bool (B, S), the real tokens, or None where every position is one. loss_positions: bool (B, S), where a loss reads
    hidden states. output_positions: bool (B, S), positions to be counted. pooled: a pooler reads the first position of each
    sequence. tokens_to_check: bool (B, S), True where the token is not the padding token; the plan then says whether any of
    them is at a padding position.
    """
    if values_hidden(device if keep is None else keep):
        read = keep is not None and (pooled or loss_positions is not None)
        layout = _every_position(keep, batch_size, seqlen, device)
        return Plan(layout, traced=True, loss_reads_padding=loss_positions is not None, padding_read=read, has_empty=read)
    if keep is None or keep.numel() == 0:
        num_outputs = None if output_positions is None else int(output_positions.sum())
        return Plan(_every_position(None, batch_size, seqlen, device), num_outputs=num_outputs)

    rows = keep
    if pooled:
        rows = keep.clone()
        rows[:, 0] = True
    num_rows, num_keys = rows.sum(1), keep.sum(1)
    none = num_keys.new_zeros(())
    longest, total_rows, total_keys, shortest, loss_reads, num_outputs, filled = torch.stack(
        [
            num_rows.amax(),
            num_rows.sum(),
            num_keys.sum(),
            num_keys.amin(),
            none if loss_positions is None else (loss_positions & ~keep).any().to(none.dtype),
            none if output_positions is None else output_positions.sum(),
            none if tokens_to_check is None else (tokens_to_check & ~keep).any().to(none.dtype),
        ]
    ).tolist()
    if total_keys == batch_size * seqlen:
        return Plan(_every_position(None, batch_size, seqlen, device), num_outputs=num_outputs)
    empty = shortest == 0
    if loss_reads:
        layout = _every_position(keep, batch_size, seqlen, device)
        return Plan(layout, loss_reads_padding=True, padding_read=True, has_empty=empty, num_outputs=num_outputs)
    cu_seqlens = F.pad(num_rows.cumsum(0), (1, 0)).to(torch.int32)
    if total_rows == total_keys:
        indices = torch.nonzero_static(keep.flatten(), size=total_rows).squeeze(1)
        layout = Layout(batch_size, seqlen, longest, indices, keep, cu_seqlens)
        return Plan(layout, tokens_at_padding=bool(filled), num_outputs=num_outputs)
    order, rank = _real_first(keep, rows)
    indices = order.flatten().index_select(0, torch.nonzero_static((rank < 2).flatten(), size=total_rows).squeeze(1))
    layout = Layout(batch_size, seqlen, longest, indices, keep, cu_seqlens, num_keys.to(torch.int32))
    return Plan(layout, padding_read=True, tokens_at_padding=bool(filled), has_empty=empty, num_outputs=num_outputs)


def _every_position(keep: Tensor | None, batch_size: int, seqlen: int, device: torch.device) -> Layout:
    cu_seqlens = torch.arange(batch_size + 1, dtype=torch.int32, device=device) * seqlen
    if keep is None:
        return Layout(batch_size, seqlen, seqlen, None, None, cu_seqlens, uniform=True)
    order, _ = _real_first(keep, keep)
    return Layout(batch_size, seqlen, seqlen, order.flatten(), keep, cu_seqlens, keep.sum(1, dtype=torch.int32), uniform=True)


def _real_first(keep: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Flat positions, (B, S), each sequence's real tokens first, then its other rows, then the rest; and those ranks."""
    batch_size, seqlen = keep.shape
    rank = 2 - keep.to(torch.int32) - rows.to(torch.int32)
    # A key that no two positions share: ONNX and OpenVINO have no stable sort.
    key, order = torch.sort(rank * seqlen + torch.arange(seqlen, dtype=torch.int32, device=keep.device), dim=1)
    return order + torch.arange(batch_size, device=keep.device)[:, None] * seqlen, key.div(seqlen, rounding_mode="floor")


def packed_layout(cu_seqlens: Tensor, max_seqlen: int, like: Tensor) -> tuple[Layout, Tensor]:
    """The layout of a batch that its caller packed, and each row's position in its sequence, int64 (R,).

    like: (R, ...), of the device and dtype of the states to come. No value goes to the host.
    """
    layout = Layout(cu_seqlens.shape[0] - 1, max_seqlen, max_seqlen, None, None, cu_seqlens).scheduled(like)
    row = torch.arange(like.shape[0], device=cu_seqlens.device)
    sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), row.to(cu_seqlens.dtype), right=True)
    position = row - cu_seqlens.index_select(0, sequence)
    return dataclasses.replace(layout, indices=sequence * max_seqlen + position), position


def split_sequences(layout: Layout, x: Tensor) -> list[tuple[int, int, Layout]]:
    """(first row, row after the last, layout as a batch of one) of each sequence that has rows. Reads values."""
    bounds = layout.cu_seqlens.tolist()
    keys = [None] * (len(bounds) - 1) if layout.seqused_k is None else layout.seqused_k.tolist()
    found = []
    for first, last, used in zip(bounds, bounds[1:], keys):
        rows = last - first
        if rows == 0:
            continue
        cu_seqlens = layout.cu_seqlens.new_tensor([0, rows])
        seqused_k = None if used is None or used == rows else layout.cu_seqlens.new_tensor([used])
        single = Layout(1, rows, rows, None, None, cu_seqlens, seqused_k, uniform=True)
        found.append((first, last, single.scheduled(x[first:last])))
    return found


def first_rows(x: Tensor, layout: Layout) -> Tensor:
    """The first row of each sequence of a packed batch, (B, ...); zeros for a sequence without rows."""
    if not torch.jit.is_tracing() and x.shape[0] == 0:
        return x.new_zeros(layout.batch_size, *x.shape[1:])
    starts = layout.cu_seqlens[:-1]
    rows = x.index_select(0, starts.clamp(max=x.shape[0] - 1))
    return torch.where((layout.cu_seqlens.diff() > 0)[:, None], rows, 0.0)


def values_hidden(like: Tensor | torch.device) -> bool:
    """Whether values cannot be read on the host now: tracing, stream capture, fake and meta tensors, functorch."""
    if torch.compiler.is_compiling():
        return True
    tensor = like if isinstance(like, Tensor) else None
    device_type = like.device.type if isinstance(like, Tensor) else like.type
    return is_tracing(tensor) or device_type == "meta" or torch._C._functorch.peek_interpreter_stack() is not None
