"""The argument checks of the public operations. Each raises ValueError or TypeError and says what was expected.

While torch.jit.trace records, sizes are tensors, and a comparison of two would be recorded with the result it had: sizes are
then left to PyTorch's own checks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .backend import autocast_dtype, checks_values
from .dropout import check_dropout_p
from .limits import ACTIVATIONS, HEAD_DIM_MULTIPLE, MAX_HEAD_DIM, MAX_NORM_SIZE, MIN_HEAD_DIM


def check_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, x_bias: Tensor | None, dropout_p: float
) -> None:
    if not torch.jit.is_tracing():
        N = x.shape[-1] if x.dim() else 0
        for name, tensor in (("weight", weight), ("bias", bias), ("x_bias", x_bias)):
            if tensor is not None and tensor.shape != (N,):
                raise ValueError(
                    f"layer_norm: expected {name} of shape ({N},) for x of shape {shape_of(x)}, got {shape_of(tensor)}"
                )
        if N == 0 or N > MAX_NORM_SIZE:
            raise ValueError(f"layer_norm: expected a last axis of 1 to {MAX_NORM_SIZE}, got x of shape {shape_of(x)}")
        if residual is not None and residual.shape != x.shape:
            raise ValueError(f"layer_norm: expected residual of shape {shape_of(x)} like x, got {shape_of(residual)}")
    check_same_dtype("layer_norm", weight=weight, bias=bias)
    check_floating("layer_norm", x=x, weight=weight, residual=residual)
    check_dropout_p(dropout_p)


def check_linear(operation: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if not torch.jit.is_tracing():
        if weight.dim() != 2 or x.dim() < 1 or x.shape[-1] != weight.shape[1]:
            raise ValueError(
                f"{operation}: expected a weight of shape (N, {x.shape[-1] if x.dim() else 0}) for an input of shape "
                f"{shape_of(x)}, got {shape_of(weight)}"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"{operation}: expected a bias of shape ({weight.shape[0]},), got {shape_of(bias)}")
    same = weight.dtype == x.dtype and (bias is None or bias.dtype == x.dtype)
    if same and x.is_floating_point():
        return
    check_floating(operation, input=x, weight=weight, bias=bias)
    if autocast_dtype(x) is None:
        check_same_dtype(operation, input=x, weight=weight, bias=bias)


def check_activation(operation: str, activation: str | None, optional: bool) -> None:
    if activation not in ACTIVATIONS and not (optional and activation is None):
        raise ValueError(f"{operation}: expected an activation among {ACTIVATIONS}, got {activation!r}")


def check_qkv_linear(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | Sequence[None]) -> None:
    if len(weights) != 3 or len(biases) != 3:
        raise ValueError(f"qkv_linear: expected three weights and three biases, got {len(weights)} and {len(biases)}")
    for name, weight, bias in zip(("query", "key", "value"), weights, biases):
        check_linear(f"qkv_linear ({name})", x, weight, bias)
        same = torch.jit.is_tracing() or weight.shape == weights[0].shape
        if not same or (bias is None) != (biases[0] is None):
            raise ValueError(
                f"qkv_linear: expected {name} like query, weight {shape_of(weights[0])} and bias "
                f"{shape_of(biases[0])}, got {shape_of(weight)} and {shape_of(bias)}"
            )


def check_feed_forward(x: Tensor, weight_in: Tensor, bias_in: Tensor, weight_out: Tensor, activation: str) -> None:
    check_linear("feed_forward", x, weight_in, bias_in)
    if not torch.jit.is_tracing() and (weight_out.dim() != 2 or weight_out.shape[1] != weight_in.shape[0]):
        raise ValueError(
            f"feed_forward: expected weight_out of shape (N, {weight_in.shape[0]}) after weight_in of shape "
            f"{shape_of(weight_in)}, got {shape_of(weight_out)}"
        )
    if weight_out.dtype != x.dtype and autocast_dtype(x) is None:
        check_same_dtype("feed_forward", input=x, weight_out=weight_out)
    check_activation("feed_forward", activation, optional=False)


def check_embedding(ids: dict[str, Tensor], tables: dict[str, Tensor], weight: Tensor, bias: Tensor, dropout_p: float) -> None:
    """ids, tables: by the name of the argument, in the same order."""
    for name, values in ids.items():
        if values.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"embedding: expected {name} of dtype int64 or int32, got {values.dtype}")
    if not torch.jit.is_tracing():
        _check_embedding_sizes(ids, tables, weight, bias)
    check_same_dtype("embedding", **tables)
    check_same_dtype("embedding", weight=weight, bias=bias)
    check_floating("embedding", word_weight=tables["word_weight"], weight=weight)
    check_dropout_p(dropout_p)


def _check_embedding_sizes(ids: dict[str, Tensor], tables: dict[str, Tensor], weight: Tensor, bias: Tensor) -> None:
    N = weight.shape[0] if weight.dim() == 1 else -1
    if bias.shape != weight.shape or N < 1 or N > MAX_NORM_SIZE:
        raise ValueError(
            f"embedding: expected weight and bias of shape (N,), N at most {MAX_NORM_SIZE}, got {shape_of(weight)} and "
            f"{shape_of(bias)}"
        )
    shape = ids["input_ids"].shape
    for (name, table), (ids_name, values) in zip(tables.items(), ids.items()):
        if table.dim() != 2 or table.shape[1] != N:
            raise ValueError(f"embedding: expected {name} of shape (rows, {N}), got {shape_of(table)}")
        if table.shape[0] == 0 and values.numel() > 0:  # the kernels read the first row where an id names none
            raise ValueError(f"embedding: expected {name} with a row for each of {ids_name}, got {shape_of(table)}")
        if values.shape != shape:
            raise ValueError(f"embedding: expected {ids_name} of shape {tuple(shape)} like input_ids, got {shape_of(values)}")
        check_ids(ids_name, values, name, table.shape[0])


def check_ids(name: str, ids: Tensor, table: str, rows: int) -> None:
    """Raises ValueError for ids outside [0, rows), where `checks_values` lets their values be read."""
    if checks_values(ids) and ids.numel():
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high >= rows:
            raise ValueError(f"embedding: expected {name} in [0, {rows}), the rows of {table}, got values from {low} to {high}")


def check_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore_index: int, reduction: str
) -> None:
    check_linear("cross_entropy", hidden, weight, bias)
    if hidden.dim() != 2:
        raise ValueError(f"cross_entropy: expected hidden of shape (T, N), got {shape_of(hidden)}")
    if not torch.jit.is_tracing() and labels.shape != hidden.shape[:1]:
        raise ValueError(f"cross_entropy: expected labels of shape ({hidden.shape[0]},), got {shape_of(labels)}")
    if labels.dtype != torch.int64:
        raise TypeError(f"cross_entropy: expected labels of dtype int64, got {labels.dtype}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"cross_entropy: expected reduction 'mean' or 'sum', got {reduction!r}")
    if checks_values(labels) and labels.numel():
        wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= weight.shape[0]))]
        if wrong.numel():
            raise ValueError(f"cross_entropy: expected labels in [0, {weight.shape[0]}) or {ignore_index}, got {int(wrong[0])}")


def check_attention(qkv: Tensor, dropout_p: float, softmax_scale: float | None) -> None:
    if not torch.jit.is_tracing():
        if qkv.dim() != 4 or qkv.shape[1] != 3:
            raise ValueError(f"attention: expected qkv of shape (tokens, 3, heads, head_dim), got {shape_of(qkv)}")
        head_dim = qkv.shape[-1]
        if not MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM or head_dim % HEAD_DIM_MULTIPLE:
            raise ValueError(
                f"attention: expected head_dim a multiple of {HEAD_DIM_MULTIPLE} from {MIN_HEAD_DIM} to {MAX_HEAD_DIM}, got "
                f"{head_dim}"
            )
    check_floating("attention", qkv=qkv)
    check_dropout_p(dropout_p)
    if softmax_scale is not None and not softmax_scale > 0.0:
        raise ValueError(f"attention: expected a positive softmax_scale, got {softmax_scale}")


def check_cu_seqlens(cu_seqlens: Tensor, max_seqlen: int, total_tokens: int, seqused_k: Tensor | None) -> None:
    if cu_seqlens.dtype != torch.int32:
        raise TypeError(f"attention: expected cu_seqlens of dtype int32, got {cu_seqlens.dtype}")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1:
        raise ValueError(f"attention: expected cu_seqlens of shape (batch_size + 1,), got {shape_of(cu_seqlens)}")
    if seqused_k is not None and (seqused_k.dtype != torch.int32 or seqused_k.shape[0] != cu_seqlens.shape[0] - 1):
        raise ValueError(
            f"attention: expected seqused_k int32 of shape ({cu_seqlens.shape[0] - 1},), got {seqused_k.dtype} "
            f"{shape_of(seqused_k)}"
        )
    if not checks_values(cu_seqlens):
        return
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0:
        raise ValueError(f"attention: expected cu_seqlens to start at 0, got {bounds[0]}")
    if bounds[-1] != total_tokens:
        raise ValueError(f"attention: expected cu_seqlens to end at the token count {total_tokens}, got {bounds[-1]}")
    seqlens = [end - start for start, end in zip(bounds, bounds[1:])]
    if min(seqlens, default=0) < 0:
        raise ValueError(f"attention: expected cu_seqlens not to decrease, got a step of {min(seqlens)}")
    if max(seqlens, default=0) > max_seqlen:
        raise ValueError(f"attention: expected sequences of at most max_seqlen {max_seqlen}, got one of {max(seqlens)}")
    if seqused_k is not None:
        for used, seqlen in zip(seqused_k.tolist(), seqlens):
            if not 0 <= used <= seqlen:
                raise ValueError(f"attention: expected seqused_k in [0, {seqlen}] for a sequence of {seqlen}, got {used}")


def check_same_dtype(operation: str, **tensors: Tensor | None) -> None:
    (first, expected), *others = ((name, tensor.dtype) for name, tensor in tensors.items() if tensor is not None)
    for name, dtype in others:
        if dtype != expected:
            raise TypeError(f"{operation}: expected {name} of dtype {expected} like {first}, got {dtype}")


def check_floating(operation: str, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.dtype.is_floating_point:
            raise TypeError(f"{operation}: expected {name} of a floating-point dtype, got {tensor.dtype}")


def shape_of(tensor: Tensor | None) -> str:
    return "None" if tensor is None else str(tuple(tensor.shape))
