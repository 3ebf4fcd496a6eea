"""Batches in buckets of fixed size: which bucket, what goes in, and what comes out as the caller's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from fastbert.model.span_logits import fill_padding_logits

NEVER_AT_PADDING = ("start_logits", "end_logits")  # an answer neither begins nor ends there, as from the model


@dataclass(frozen=True, order=True)
class Bucket:
    """A batch of at most so many real tokens and sequences.

    Raises ValueError for less than one sequence, or not more tokens than sequences.
    """

    tokens: int
    sequences: int

    def __post_init__(self) -> None:
        if not 1 <= self.sequences < self.tokens:
            raise ValueError(f"expected a bucket of more tokens than sequences, of which at least one, got {self}")


DEFAULT_BUCKETS = tuple(
    Bucket(tokens, sequences)
    for tokens, sequences in (
        (32, 1), (64, 1), (128, 1), (256, 1), (512, 1),
        (128, 8), (256, 16), (512, 32), (1024, 64), (2048, 128), (4096, 256), (8192, 512),
    )
)  # fmt: skip


@dataclass(frozen=True)
class Packed:
    """Real tokens of a call, one sequence after the other: int64 (tokens,) each; lengths of the sequences.

    indices: int64 (tokens,), flat place of each token in the padded batch of `shape`; both None where the caller packed.
    """

    input_ids: Tensor
    token_type_ids: Tensor
    position_ids: Tensor
    lengths: tuple[int, ...]
    indices: Tensor | None = None
    shape: tuple[int, int] | None = None

    @property
    def tokens(self) -> int:
        return self.input_ids.shape[0]


def pack(inputs: Mapping[str, Any], most: int) -> Packed | str:
    """The call's real tokens, or why they cannot be packed for a graph. Reads the lengths on the host.

    most: positions of the model.
    """
    ids, types, positions = inputs["input_ids"], inputs["token_type_ids"], inputs["position_ids"]
    if inputs["cu_seqlens"] is not None:
        bounds = inputs["cu_seqlens"].tolist()
        lengths = tuple(end - start for start, end in zip(bounds, bounds[1:]))
        if bounds[:1] != [0] or bounds[-1:] != [ids.shape[0]] or min(lengths, default=-1) < 0:
            return "cu_seqlens do not rise from 0 to the number of tokens"
        if positions is None:
            positions = torch.cat([torch.arange(length) for length in lengths]) if lengths else ids
        if lengths and max(lengths) > most:
            return "a sequence is longer than the model has positions"
        return Packed(ids, torch.zeros_like(ids) if types is None else types, positions, lengths)
    batch_size, seqlen = ids.shape
    if seqlen > most:
        return "a sequence is longer than the model has positions"
    mask = inputs["attention_mask"]
    keep = torch.ones(batch_size, seqlen, dtype=torch.bool) if mask is None else mask.to("cpu", torch.bool)
    if ids.numel() == 0 or not keep[:, 0].all():
        return "a sequence begins with padding"  # whose value a pooler may read
    indices = keep.flatten().nonzero().squeeze(1)

    def real(value: Tensor) -> Tensor:
        flat = value.expand(batch_size, seqlen).flatten()
        return flat if len(indices) == len(flat) else flat.index_select(0, indices.to(flat.device))

    return Packed(
        real(ids),
        torch.zeros(len(indices), dtype=torch.int64) if types is None else real(types),
        indices % seqlen if positions is None else real(positions),
        tuple(keep.sum(1).tolist()),
        indices,
        (batch_size, seqlen),
    )


def owned(outputs: Mapping[str, Tensor], packed: Packed, bucket: Bucket) -> ModelOutput:
    """The real rows of each output in memory of their own, padded again where the call was."""
    found = {}
    for name, value in outputs.items():
        if value.shape[0] != bucket.tokens:
            found[name] = value[: len(packed.lengths)].clone()
        elif packed.indices is None or packed.shape is None:
            found[name] = value[: packed.tokens].clone()
        else:
            batch_size, seqlen = packed.shape
            if packed.tokens == batch_size * seqlen:
                flat = value[: packed.tokens].clone()
            else:
                flat = value.new_zeros(batch_size * seqlen, *value.shape[1:])
                flat.index_copy_(0, packed.indices.to(value.device), value[: packed.tokens])
            found[name] = flat.view(batch_size, seqlen, *value.shape[1:])
            if name in NEVER_AT_PADDING and packed.tokens < batch_size * seqlen:
                padding = torch.ones(batch_size * seqlen, dtype=torch.bool, device=value.device)
                padding.index_fill_(0, packed.indices.to(value.device), False)
                found[name] = fill_padding_logits(found[name], padding.view(batch_size, seqlen))
    return type(outputs)(**found)  # type: ignore[return-value]
