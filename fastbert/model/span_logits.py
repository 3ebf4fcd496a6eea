"""Logits over the positions of a sequence, as question answering has them: padding in them, and their loss.

B batch, S sequence, T tokens of a batch packed by its caller.
"""

import torch
from torch import Tensor
from torch.nn import CrossEntropyLoss

PADDING_MARGIN = 32.0  # how far logits at padding lie below a row's real ones: exp(-32) is below float32's rounding


def fill_padding_logits(logits: Tensor, padding: Tensor) -> Tensor:
    """Puts logits (B, S) at padding so low that it loses every argmax of its row and takes no probability.

    They stay near enough for a smoothed or distilled loss over all positions to be finite in every dtype. padding: bool (B, S).
    """
    wide = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    lowest = wide.masked_fill(padding, float("inf")).amin(-1, keepdim=True)
    lowest = torch.where(lowest.isinf(), 0.0, lowest)  # a row of padding alone
    # The fraction keeps the distance larger than the spacing of 16-bit numbers.
    below = lowest - PADDING_MARGIN - lowest.abs() / 16
    limits = torch.finfo(logits.dtype)
    return torch.where(padding, below.clamp(limits.min, limits.max).to(logits.dtype), logits)


def pad_packed_logits(logits: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """(T,) -> (B, max_seqlen), the dtype's minimum past the end of each sequence."""
    lengths, starts = cu_seqlens.diff(), cu_seqlens[:-1]
    position = torch.arange(max_seqlen, device=logits.device)
    inside = position < lengths[:, None]  # (B, max_seqlen)
    rows = torch.where(inside, starts[:, None] + position, 0)
    return logits[rows].masked_fill(~inside, torch.finfo(logits.dtype).min)


def span_loss(logits: Tensor, positions: Tensor) -> Tensor:
    """One half of the question-answering loss, as transformers takes it; positions past the input are ignored.

    logits: (B, S). positions: int64 (B,) or (B, 1).
    """
    positions = positions.squeeze(-1) if positions.dim() > 1 else positions
    ignored = logits.shape[1]
    return CrossEntropyLoss(ignore_index=ignored)(logits, positions.to(logits.device).clamp(0, ignored))
