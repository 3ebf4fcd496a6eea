"""The public operations: each checks its arguments, chooses the backend and makes one call. No Triton before a kernel runs.

Shapes: T tokens of the packed batch, N hidden size, H heads, D head_dim. Every floating-point tensor of one call has the
same dtype unless its docstring says otherwise; under autocast the operations follow PyTorch's lists (matrix products in
the lower precision, layer norm in float32).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference
from .attention.schedule import AttentionSchedule, equal_runs
from .backend import autocast_dtype, is_tracing, resolve_backend
from .checks import (
    check_activation,
    check_attention,
    check_cross_entropy,
    check_cu_seqlens,
    check_embedding,
    check_feed_forward,
    check_layer_norm,
    check_linear,
    check_qkv_linear,
)
from .checks import check_ids as check_ids
from .dropout import new_seed, threshold
from .limits import IGNORE_INDEX


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    *,
    x_bias: Tensor | None = None,
    eps: float = 1e-12,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    stream: int = 0,
) -> Tensor:
    """Fused bias + dropout + residual + layer norm: layer_norm(dropout(x + x_bias) + residual) over the last axis.

    Ba et al. 2016; "add & norm" in BERT.

    x: (..., N). weight, bias: scale and shift, (N,). residual: same shape as x; its dtype may differ, and the result has the
    wider of the two. x_bias: the bias of the linear layer before, (N,). eps: added to the variance.
    dropout_p: probability of dropping an element of x + x_bias. seed: int64 tensor of one element on x's device; drawn from
    PyTorch's generator where None. stream: a number that differs between operations that share a seed.
    Returns (..., N). Mean and variance are computed in float32.
    Raises ValueError for shapes that do not fit or dropout_p outside [0, 1], TypeError for a dtype that does not.
    """
    check_layer_norm(x, weight, bias, residual, x_bias, dropout_p)
    if resolve_backend(x) == "torch":
        return reference.layer_norm_ref(x, weight, bias, residual, x_bias=x_bias, eps=eps, dropout_p=dropout_p)
    from . import layer_norm as kernel

    out_dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    if autocast_dtype(x) is not None:
        out_dtype = torch.promote_types(out_dtype, torch.float32)
    dropout_p, seed = _dropout_seed(x, dropout_p, seed)
    return kernel.layer_norm(x, weight, bias, residual, x_bias, eps, dropout_p, seed, stream, out_dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None) -> Tensor:
    """activation(x @ weight.T + bias).

    x: (..., K). weight: (N, K). bias: (N,). activation: None, 'gelu_erf' (exact), 'gelu_tanh' or 'relu'.
    Returns (..., N). Products accumulate in float32; float32 inputs use tf32 only where PyTorch allows it, here as in every
    operation with products. On an NVIDIA GPU the kernels' tf32 cuts operands towards zero, which errs 2.5 to 4.5 times as
    much as rounding them; a product that the library computes has the library's tf32.
    Raises ValueError for shapes that do not fit or an unknown activation, TypeError for mixed dtypes.
    """
    check_linear("linear", x, weight, bias)
    check_activation("linear", activation, optional=True)
    if resolve_backend(x) == "torch":
        return reference.linear_ref(x, weight, bias, activation=activation)
    from . import linear as kernel

    x, weight, bias = _autocast(x, weight, bias)
    return kernel.linear(x, weight, bias, activation)


def qkv_linear(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | Sequence[None] = (None, None, None)) -> Tensor:
    """The query, key and value projections of one input in one launch, from three separate weights.

    x: (..., K). weights: three tensors (N, K). biases: three tensors (N,), or three times None.
    Returns (..., 3 * N): query, key and value side by side.
    Raises ValueError for shapes that do not fit or other than three weights and biases, TypeError for mixed dtypes.
    """
    check_qkv_linear(x, weights, biases)
    if resolve_backend(x) == "torch":
        return reference.qkv_linear_ref(x, weights, biases)
    from . import linear as kernel

    x, *rest = _autocast(x, *weights, *biases)
    return kernel.qkv_linear(x, rest[:3], rest[3:])


def feed_forward(
    x: Tensor,
    weight_in: Tensor,
    bias_in: Tensor,
    weight_out: Tensor,
    *,
    activation: str = "gelu_erf",
    keep_inner: bool = False,
) -> Tensor:
    """activation(x @ weight_in.T + bias_in) @ weight_out.T: BERT's feed-forward without its output bias.

    The output bias belongs to the `layer_norm` that follows (its x_bias). Because this is one operation, the backward
    multiplies by the activation's derivative in the epilogue of the product with weight_out.
    x: (..., K). weight_in: (F, K). bias_in: (F,). weight_out: (N, F). activation: as in `linear`, not None.
    keep_inner: whether the kernels save the state after the activation, F elements per row, for the backward. Otherwise it is
    recomputed there from the state before the activation, which is saved in any case. The gradients are the same; the PyTorch
    backend saves both.
    Returns (..., N).
    Raises ValueError for shapes that do not fit or an unknown activation, TypeError for mixed dtypes.
    """
    check_feed_forward(x, weight_in, bias_in, weight_out, activation)
    if resolve_backend(x) == "torch":
        return reference.feed_forward_ref(x, weight_in, bias_in, weight_out, activation=activation)
    from . import feed_forward as kernel

    x, weight_in, bias_in, weight_out = _autocast(x, weight_in, bias_in, weight_out)
    return kernel.feed_forward(x, weight_in, bias_in, weight_out, activation, keep_inner)


def embedding(
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
    seed: Tensor | None = None,
    stream: int = 0,
    deterministic: bool = True,
) -> Tensor:
    """dropout(layer_norm(word[input_ids] + token_type[token_type_ids] + position[position_ids])) (Devlin et al. 2019, §3).

    input_ids, token_type_ids, position_ids: int64 or int32, one shape (...). word_weight, token_type_weight,
    position_weight: (vocab_size, N), (type_vocab_size, N), (max_position_embeddings, N). weight, bias: of the layer norm,
    (N,). padding_idx: row of word_weight that receives no gradient, as in torch.nn.Embedding. dropout_p, seed, stream: as
    in `layer_norm`, applied after it. deterministic: table gradients are summed in a fixed order; where False, a GPU may add
    them with atomics.
    Returns (..., N). On a GPU, whose ids are not looked at before, the kernel gives a token with an id outside its table NaN
    where dropout keeps it, and so the rows of the tables to whose gradients it adds; nothing is read or written elsewhere.
    Raises ValueError for shapes that do not fit, ids outside their table (values are checked on the CPU; on a GPU when
    FASTBERT_DEBUG=1) or dropout_p outside [0, 1], TypeError for other dtypes.
    """
    tables = {"word_weight": word_weight, "token_type_weight": token_type_weight, "position_weight": position_weight}
    ids = {"input_ids": input_ids, "token_type_ids": token_type_ids, "position_ids": position_ids}
    check_embedding(ids, tables, weight, bias, dropout_p)
    if resolve_backend(word_weight) == "torch":
        tensors = (*ids.values(), *tables.values(), weight, bias)
        return reference.embedding_ref(*tensors, padding_idx=padding_idx, eps=eps, dropout_p=dropout_p)
    from . import embedding as kernel

    out_dtype = word_weight.dtype
    if autocast_dtype(word_weight) is not None:
        out_dtype = torch.promote_types(out_dtype, torch.float32)
    dropout_p, seed = _dropout_seed(word_weight, dropout_p, seed)
    options = (padding_idx, eps, dropout_p, seed, stream, deterministic, out_dtype)
    return kernel.embedding(tuple(ids.values()), tuple(tables.values()), weight, bias, *options)


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    ignore_index: int = IGNORE_INDEX,
    reduction: str = "mean",
    num_labelled: int | None = None,
) -> Tensor:
    """Cross entropy of hidden @ weight.T + bias against labels, computed at the labelled rows only.

    The masked-language-model loss (Devlin et al. 2019, §3.1) together with its decoder. On a GPU the logits are computed for
    one chunk of rows at a time.
    hidden: (T, N). weight: decoder weight, (V, N). bias: decoder bias, (V,) or None. labels: int64 (T,), ignore_index
    where there is nothing to predict. reduction: 'mean' over the labelled rows (NaN where there are none, as in PyTorch)
    or 'sum'. num_labelled: how many labels differ from ignore_index where the caller knows; otherwise they are counted,
    which waits for the device. While tracing every row is computed.
    Returns a float32 scalar.
    Raises ValueError for shapes that do not fit, an unknown reduction or a label outside [0, V) (checked like ids in
    `embedding`), TypeError for mixed dtypes.
    """
    check_cross_entropy(hidden, weight, bias, labels, ignore_index, reduction)
    if not is_tracing():
        rows = _labelled_rows(labels, ignore_index, num_labelled)
        hidden, labels = hidden.index_select(0, rows), labels.index_select(0, rows)
    if resolve_backend(hidden) == "torch":
        return reference.cross_entropy_ref(hidden, weight, bias, labels, ignore_index=ignore_index, reduction=reduction)
    from . import cross_entropy as kernel

    hidden, weight, bias = _autocast(hidden, weight, bias)
    return kernel.cross_entropy(hidden, weight, bias, labels, ignore_index, reduction)


def attention_schedule(
    cu_seqlens: Tensor,
    max_seqlen: int,
    total_tokens: int,
    like: Tensor,
    *,
    seqused_k: Tensor | None = None,
    uniform: bool = False,
) -> AttentionSchedule:
    """What `attention` derives from the sequence lengths, computed once for all layers of a batch.

    cu_seqlens: int32 (batch_size + 1,), where each sequence begins: starts at 0, never decreases, ends at total_tokens.
    max_seqlen: at least the longest sequence. like: a tensor with the device and dtype that qkv will have.
    seqused_k: int32 (batch_size,), how many leading rows of each sequence are keys; all where None.
    uniform: the caller's promise that every sequence has exactly max_seqlen rows.
    Raises ValueError for a cu_seqlens that breaks these rules (values are checked on the CPU; on a GPU when
    FASTBERT_DEBUG=1), TypeError for another dtype.
    """
    check_cu_seqlens(cu_seqlens, max_seqlen, total_tokens, seqused_k)
    if resolve_backend(like) == "triton":
        from .attention.packing import attention_packs
        from .attention.work_list import attention_tile_lists

        lengths = (cu_seqlens, seqused_k, total_tokens)
        tiles = (*attention_tile_lists(*lengths), *attention_packs(*lengths))
        return AttentionSchedule(cu_seqlens, max_seqlen, seqused_k, uniform, None, tiles)
    runs = None if is_tracing() else equal_runs(cu_seqlens, seqused_k)
    return AttentionSchedule(cu_seqlens, max_seqlen, seqused_k, uniform, runs, None)


def attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    seqused_k: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    stream: int = 0,
    schedule: AttentionSchedule | None = None,
) -> Tensor:
    """Softmax attention within each sequence of a packed batch (Vaswani et al. 2017, §3.2).

    qkv: (T, 3, H, D); where it is not contiguous or starts at no multiple of 16 bytes, a kernel may copy it first. D is a
    multiple of 8 from 16 to 128.
    cu_seqlens, max_seqlen, seqused_k: as in `attention_schedule`; rows past seqused_k attend but are not attended to, and
    a sequence without keys gives zeros. softmax_scale: positive factor on q·k, D ** -0.5 where None. causal: a row attends
    to itself and earlier rows only. dropout_p: probability of dropping an attention weight. seed, stream: as in
    `layer_norm`. schedule: the result of `attention_schedule` for the same lengths, where there is one.
    Returns (T, H, D).
    Raises ValueError for shapes that do not fit, an unsupported D, a bad cu_seqlens or softmax_scale, TypeError for other
    dtypes.
    """
    check_attention(qkv, dropout_p, softmax_scale)
    softmax_scale = qkv.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    if schedule is None:
        schedule = attention_schedule(cu_seqlens, max_seqlen, qkv.shape[0], qkv, seqused_k=seqused_k)
    if schedule.tiles is None:
        return reference.attention_torch(
            qkv,
            schedule.cu_seqlens,
            schedule.max_seqlen,
            seqused_k=schedule.seqused_k,
            softmax_scale=softmax_scale,
            causal=causal,
            dropout_p=dropout_p,
            runs=schedule.runs,
            uniform=schedule.uniform,
        )
    from .attention import op as kernel

    (qkv,) = _autocast(qkv)
    dropout_p, seed = _dropout_seed(qkv, dropout_p, seed)
    return kernel.attention(qkv, schedule.tiles, schedule.max_seqlen, softmax_scale, causal, dropout_p, seed, stream)


def _autocast(first: Tensor, *others: Tensor | None) -> list:
    """The tensors in the dtype of autocast, or as they are where it is off."""
    dtype = autocast_dtype(first)
    if dtype is None:
        return [first, *others]
    return [None if tensor is None else tensor.to(dtype) for tensor in (first, *others)]


def _dropout_seed(like: Tensor, dropout_p: float, seed: Tensor | None) -> tuple[float, Tensor | None]:
    """(dropout_p, seed); (0.0, None) where the rate is too small to drop anything."""
    if threshold(dropout_p) == 0:
        return 0.0, None
    return dropout_p, new_seed(like.device) if seed is None else seed


def _labelled_rows(labels: Tensor, ignore_index: int, num_labelled: int | None) -> Tensor:
    """Indices of the labelled rows in order; without a wait for the device where their number is given."""
    labelled = labels != ignore_index
    if num_labelled is None:
        return labelled.nonzero().squeeze(1)
    return torch.argsort(labelled.to(torch.uint8), descending=True, stable=True)[:num_labelled]
