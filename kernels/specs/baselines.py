"""PyTorch's own way to compute an operation, where it is not the reference on the operation's inputs. Imports no Triton."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import fp8, reference
from ..limits import IGNORE_INDEX
from .spec import Inputs, PeerCall


def padded_attention(inputs: Inputs) -> PeerCall:
    """`scaled_dot_product_attention` on the padded batch with its mask, as a user of PyTorch has them.

    Padding is done here, once; what it costs the attention itself is part of the timed call.
    """
    qkv, cu_seqlens = inputs["qkv"], inputs["cu_seqlens"]  # [T, 3, H, D]
    seqlens = cu_seqlens.diff()
    batch_size, max_seqlen = seqlens.shape[0], int(seqlens.max())
    kept = torch.arange(max_seqlen, device=qkv.device) < seqlens[:, None]  # [B, S]
    padded = qkv.new_zeros(3, batch_size, max_seqlen, *qkv.shape[2:])  # [3, B, S, H, D]
    padded[:, kept] = qkv.detach().transpose(0, 1)
    # Three tensors, as three projections give them: the gradient of one for all would be one more copy.
    leaves = tuple(part.clone() for part in padded)  # 3 x [B, S, H, D]
    arguments: Inputs = dict(zip("qkv", leaves))
    arguments["mask"] = None if bool(kept.all()) else kept[:, None, None, :]  # [B, 1, 1, S]
    arguments["scale"] = inputs.get("softmax_scale")
    return PeerCall(_sdpa, arguments, "SDPA", leaves, kept)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # [B, H, S, D]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)  # [B, S, H, D]


def cross_entropy_of_labelled_rows(inputs: Inputs) -> PeerCall:
    """The loss on the labelled rows alone, which is all it needs."""
    return PeerCall(on_labelled_rows(reference.cross_entropy_ref), inputs)


def on_labelled_rows(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same loss without multiplying the rows that have no label; selecting them is part of the call."""

    def labelled(
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        *,
        ignore_index: int = IGNORE_INDEX,
        **options: Any,
    ) -> Tensor:
        rows = (labels != ignore_index).nonzero().squeeze(1)
        return function(hidden[rows], weight, bias, labels[rows], ignore_index=ignore_index, **options)

    return labelled


def linear_without_quantization(inputs: Inputs) -> PeerCall:
    """The fp8 product's numbers multiplied in the dtype of its output, which is what quantising saves over."""
    dtype = inputs["out_dtype"]
    x = fp8.dequantize(inputs["q"], inputs["scale"]).to(dtype)
    weight = fp8.dequantize(inputs["weight_q"], inputs["weight_scale"][:, None]).to(dtype)
    name = f"PyTorch, {str(dtype).removeprefix('torch.')}"
    return PeerCall(F.linear, {"input": x, "weight": weight, "bias": inputs["bias"]}, name)
