"""Batches in buckets of fixed size: the buckets, the packing of a call's inputs, and the copies of outputs it returns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from fastbert.model.span_logits import fill_padding_logits

SPAN_LOGITS = ("start_logits", "end_logits")  # lowest at padding, where no answer starts or ends, as the model returns them


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


DEFAULT_BUCKETS = (
    *(Bucket(tokens, 1) for tokens in (32, 64, 128, 256, 512)),
    *(Bucket(tokens, tokens // 16) for tokens in (128, 256, 512, 1024, 2048, 4096, 8192)),
)


@dataclass(frozen=True)
class Packed:
    """The real tokens of a call, one sequence after the other.

    input_ids, token_type_ids, position_ids: int64 (T,). lengths: of the sequences. indices: int64 (T,), flat position of each
    token in the padded batch of `shape`; both None where the caller packed.
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


def pack(inputs: Mapping[str, Any], max_positions: int) -> Packed | str:
    """The call's real tokens, or why they cannot be packed for a graph. Reads the lengths on the host.

    inputs: of the model's forward, None for those not given. max_positions: of the model.
    """
    ids, types, positions = inputs["input_ids"], inputs["token_type_ids"], inputs["position_ids"]
    if inputs["cu_seqlens"] is not None:
        bounds = inputs["cu_seqlens"].tolist()
        lengths = tuple(end - start for start, end in zip(bounds, bounds[1:]))
        if bounds[:1] != [0] or bounds[-1:] != [ids.shape[0]] or min(lengths, default=-1) < 0:
            return "cu_seqlens do not rise from 0 to the number of tokens"
        if positions is None:
            positions = torch.cat([torch.arange(length) for length in lengths]) if lengths else ids
        if lengths and max(lengths) > max_positions:
            return "a sequence is longer than the model has positions"
        return Packed(ids, torch.zeros_like(ids) if types is None else types, positions, lengths)
    batch_size, seqlen = ids.shape
    if seqlen > max_positions:
        return "a sequence is longer than the model has positions"
    mask = inputs["attention_mask"]
    keep = torch.ones(batch_size, seqlen, dtype=torch.bool) if mask is None else mask.to("cpu", torch.bool)
    if ids.numel() == 0 or not keep[:, 0].all():
        return "a sequence begins with padding"  # which a pooler may read
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


def copy_outputs(outputs: Mapping[str, Tensor], packed: Packed, bucket: Bucket) -> ModelOutput:
    """Copies of the real rows of each output, padded again where the call was.

    outputs: of all of the bucket, (bucket.tokens, ...) or (sequences, ...).
    """
    copies: dict[str, Any] = {}
    for name, value in outputs.items():
        if value.shape[0] != bucket.tokens:
            copies[name] = value[: len(packed.lengths)].clone()
        elif packed.indices is None or packed.shape is None:
            copies[name] = value[: packed.tokens].clone()
        else:
            batch_size, seqlen = packed.shape
            if packed.tokens == batch_size * seqlen:
                flat = value[: packed.tokens].clone()
            else:
                flat = value.new_zeros(batch_size * seqlen, *value.shape[1:])
                flat.index_copy_(0, packed.indices.to(value.device), value[: packed.tokens])
            copies[name] = flat.view(batch_size, seqlen, *value.shape[1:])
            if name in SPAN_LOGITS and packed.tokens < batch_size * seqlen:
                padding = torch.ones(batch_size * seqlen, dtype=torch.bool, device=value.device)
                padding.index_fill_(0, packed.indices.to(value.device), False)
                copies[name] = fill_padding_logits(copies[name], padding.view(batch_size, seqlen))
    cls: Any = type(outputs)
    return cls(**copies)
