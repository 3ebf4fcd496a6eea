"""Every operation in plain PyTorch: the CPU path and, on float64 inputs, the oracle of the kernel tests. No Triton.

A function here takes the arguments of the operation in `functional`, which has checked them. With dropout, a test can pass
`dropout_mask`, the mask that a kernel drew: a multiplier per element, 0 or 1/(1 - p).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from .backend import is_tracing
from .limits import IGNORE_INDEX


def dropped(x: Tensor, dropout_p: float, dropout_mask: Tensor | None) -> Tensor:
    """x with elements dropped: by `dropout_mask` where given, else by PyTorch's generator."""
    if dropout_mask is not None:
        return x * dropout_mask.to(x.dtype)
    return F.dropout(x, dropout_p) if dropout_p > 0.0 else x


def activate(x: Tensor, activation: str | None) -> Tensor:
    if activation is None:
        return x
    if activation == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


def layer_norm_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    *,
    x_bias: Tensor | None = None,
    eps: float = 1e-12,
    dropout_p: float = 0.0,
    dropout_mask: Tensor | None = None,
) -> Tensor:
    """layer_norm(dropout(x + x_bias) + residual) over the last axis."""
    if x_bias is not None:
        x = x + x_bias
    x = dropped(x, dropout_p, dropout_mask)
    if residual is not None:
        x = x + residual
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def linear_ref(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None) -> Tensor:
    """activation(x @ weight.T + bias)."""
    y = F.linear(x, weight, bias)
    if activation is None or not overwritable(y):
        return activate(y, activation)
    # In place: a second tensor of this size would need new pages from the operating system, about a tenth of a BERT layer.
    if activation == "relu":
        return F.relu_(y)
    return torch.ops.aten.gelu_(y, approximate="tanh" if activation == "gelu_tanh" else "none")


def overwritable(fresh: Tensor) -> bool:
    """Whether a tensor that was just allocated may be changed in place: not under autograd, functorch or a trace."""
    return (
        not fresh.requires_grad
        and not is_tracing()
        and forward_ad._current_level < 0
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def qkv_linear_ref(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | Sequence[None] = (None, None, None)
) -> Tensor:
    """The three projections side by side: (..., 3 * out_features)."""
    # Concatenate what is smaller, results or weights; torch.jit.trace must not choose by the size of its example.
    if torch.jit.is_tracing() or (not torch.compiler.is_compiling() and x.numel() < weights[0].shape[1] ** 2):
        return torch.cat([F.linear(x, weight, bias) for weight, bias in zip(weights, biases)], -1)
    given = [bias for bias in biases if bias is not None]
    return F.linear(x, torch.cat(list(weights)), torch.cat(given) if given else None)


def feed_forward_ref(
    x: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor, *, activation: str = "gelu_erf"
) -> Tensor:
    """activation(x @ weight_in.T + bias_in) @ weight_out.T. The layer norm that follows adds the output bias."""
    return F.linear(activate(F.linear(x, weight_in, bias_in), activation), weight_out)


def embedding_ref(
    input_ids: Tensor,
    token_type_ids: Tensor,
    position_ids: Tensor,
    word_weight: Tensor,
    token_type_weight: Tensor,
    position_weight: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    padding_idx: int | None = None,
    eps: float = 1e-12,
    dropout_p: float = 0.0,
    dropout_mask: Tensor | None = None,
) -> Tensor:
    """dropout(layer_norm(word[input_ids] + token_type[token_type_ids] + position[position_ids]))."""
    z = F.embedding(input_ids, word_weight, padding_idx) + F.embedding(token_type_ids, token_type_weight)
    z = z + F.embedding(position_ids, position_weight)
    y = F.layer_norm(z, weight.shape, weight, bias, eps)
    return dropped(y, dropout_p, dropout_mask)


def cross_entropy_ref(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    ignore_index: int = IGNORE_INDEX,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy of hidden @ weight.T + bias against labels, in float32 or wider from the logits on."""
    logits = F.linear(hidden, weight, bias)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction=reduction)


def attention_ref(
    qkv: Tensor,
    cu_seqlens: Tensor,
    *,
    seqused_k: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    dropout_mask: Tensor | None = None,
) -> Tensor:
    """Softmax attention written out, one sequence at a time: the oracle of the tests.

    qkv: (tokens, 3, heads, head_dim). dropout_mask: (heads, tokens, max_seqlen), the multiplier on the probability of each
    query token and key, keys counted from the start of the sequence. Returns (tokens, heads, head_dim).
    """
    softmax_scale = qkv.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    bounds = cu_seqlens.tolist()
    used = [end - start for start, end in zip(bounds, bounds[1:])] if seqused_k is None else seqused_k.tolist()
    pieces = [qkv.new_zeros(0, *qkv.shape[2:])]
    for start, end, num_keys in zip(bounds, bounds[1:], used):
        q, k, v = qkv[start:end].permute(1, 2, 0, 3)  # each (heads, seqlen, head_dim)
        k, v = k[:, :num_keys], v[:, :num_keys]
        scores = softmax_scale * (q @ k.transpose(-1, -2))
        if causal:
            rows = torch.arange(end - start, device=qkv.device)[:, None]
            scores = scores.masked_fill(torch.arange(num_keys, device=qkv.device)[None, :] > rows, float("-inf"))
        probabilities = scores.softmax(-1)
        if dropout_mask is not None:
            probabilities = probabilities * dropout_mask[:, start:end, :num_keys].to(qkv.dtype)
        pieces.append((probabilities @ v).transpose(0, 1))
    rows_outside = qkv.new_zeros(qkv.shape[0] - bounds[-1], *qkv.shape[2:])
    return torch.cat([*pieces, rows_outside])


def attention_torch(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    seqused_k: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    dropout_p: float = 0.0,
    runs: Sequence[tuple[int, int, int]] | None = None,
    uniform: bool = False,
) -> Tensor:
    """The same attention by PyTorch's fused SDPA, where the kernels do not run.

    runs: (number of sequences, rows of each, keys of each) in order, as `attention_schedule` lists them. Where None, the
    sequences are gathered into one padded tensor, which needs no values on the host and therefore can be traced.
    uniform: every sequence has max_seqlen rows.
    """
    options: dict[str, Any] = {"scale": softmax_scale, "dropout_p": dropout_p}
    if runs is None:
        return _attention_padded(qkv, cu_seqlens, max_seqlen, seqused_k, causal, uniform, options)
    if not runs:
        return qkv[:, 2]  # no sequence, no row
    pieces = []
    whole = [qkv] if len(runs) == 1 else qkv.split([count * seqlen for count, seqlen, _ in runs])
    for piece, (count, seqlen, num_keys) in zip(whole, runs):
        if num_keys == 0:
            pieces.append(piece.new_zeros(count * seqlen, *qkv.shape[2:]))
            continue
        q, k, v = piece.view(count, seqlen, *qkv.shape[1:]).permute(2, 0, 3, 1, 4)  # each (count, heads, seqlen, head_dim)
        k, v = k[:, :, :num_keys], v[:, :, :num_keys]
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, **options)
        pieces.append(out.transpose(1, 2).flatten(0, 1))
    if not pieces:
        return qkv.new_zeros(qkv.shape[0], *qkv.shape[2:])
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _attention_padded(qkv, cu_seqlens, max_seqlen, seqused_k, causal, uniform, options) -> Tensor:
    batch_size, heads = cu_seqlens.shape[0] - 1, qkv.shape[2]
    positions = torch.arange(max_seqlen, device=qkv.device)
    seqlens = cu_seqlens.diff()
    if uniform:
        padded = qkv.unflatten(0, (batch_size, max_seqlen))
    else:
        # Positions past the end of a sequence hold its first row, or the batch's first row where it has none.
        rows = torch.where(seqlens > 0, cu_seqlens[:-1], 0)[:, None] + torch.where(positions < seqlens[:, None], positions, 0)
        padded = qkv[rows.flatten()].unflatten(0, (batch_size, max_seqlen))
    q, k, v = padded.permute(2, 0, 3, 1, 4).unbind()  # each (batch, heads, max_seqlen, head_dim)
    num_keys = seqlens if seqused_k is None else seqused_k
    if uniform and seqused_k is None:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, **options)
    else:
        keep = (positions < num_keys[:, None])[:, None, None, :]
        if causal:
            keep = keep & (positions[None, :] <= positions[:, None])
        # Without a key SDPA gives NaN: a sequence without keys attends to every row here, and its rows are zeroed below.
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keep | (num_keys == 0)[:, None, None, None], **options)
        out = out.masked_fill((num_keys == 0)[:, None, None, None], 0.0)
    out = out.transpose(1, 2)  # (batch, max_seqlen, heads, head_dim)
    if uniform:
        return out.flatten(0, 1)
    tokens = torch.arange(qkv.shape[0], device=qkv.device)
    sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), tokens.to(cu_seqlens.dtype), right=True)
    inside = sequence < batch_size
    sequence = torch.where(inside, sequence, 0)
    position = torch.where(inside, tokens - cu_seqlens[sequence], 0)
    packed = out.reshape(batch_size * max_seqlen, heads, -1)[sequence * max_seqlen + position]
    return torch.where(inside[:, None, None], packed, 0.0)
