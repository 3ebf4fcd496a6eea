"""Packed batches for the tests of attention."""

import torch

from fastbert.kernels.functional import attention_schedule
from fastbert.kernels.specs.spec import generator, normal

SHORT, LONG = (17, 64, 3), (17, 130, 64)  # for the kernels of short sequences; for the loops


def bounds_of(seqlens, device="cpu"):
    """cu_seqlens."""
    return torch.tensor([0, *torch.tensor(seqlens, dtype=torch.int64).cumsum(0).tolist()], dtype=torch.int32, device=device)


def packed_batch(seqlens, heads=2, head_dim=16, dtype=torch.float32, device="cpu"):
    """qkv, cu_seqlens and max_seqlen."""
    qkv = normal((sum(seqlens), 3, heads, head_dim), dtype, torch.device(device), generator())
    return qkv, bounds_of(seqlens, device), max(seqlens)


def tiles_of(cu_seqlens, max_seqlen, qkv):
    """What the operators read of the schedule."""
    return list(attention_schedule(cu_seqlens, max_seqlen, qkv.shape[0], qkv).tiles)
