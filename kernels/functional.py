"""The operations: arguments checked, backend chosen, one call made. Imports no Triton until a kernel runs.

Shapes: T tokens of the packed batch, N hidden size, H heads, D head_dim. Every floating-point tensor of one call has the
same dtype unless its docstring says otherwise; under autocast the operations follow PyTorch's own lists (matrix products
in the lower precision, layer norm in float32).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference
from .attention.schedule import AttentionSchedule, equal_runs
from .backend import autocast_dtype, checks_values, is_tracing, resolve_backend
from .dropout import check_dropout_p, new_seed, threshold
from .limits import ACTIVATIONS, HEAD_DIM_MULTIPLE, MAX_HEAD_DIM, MAX_NORM_SIZE, MIN_HEAD_DIM


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
    """layer_norm(dropout(x + x_bias) + residual) over the last axis (Ba et al. 2016; BERT's "add & norm").

    x: (..., N). weight, bias: scale and shift, (N,). residual: same shape as x; its dtype may differ, the result has the
    wider of the two. x_bias: the bias of the linear layer that made x, (N,). eps: added to the variance.
    dropout_p: probability of dropping an element of x + x_bias. seed, stream: int64 tensor of one element on x's device
    and a number telling apart the operations that share it; a seed is drawn from PyTorch's generator where None.
    Returns (..., N). Statistics are float32.
    Raises ValueError for shapes that do not fit or dropout_p outside [0, 1], TypeError for a dtype that does not.
    """
    if not torch.jit.is_tracing():
        _check_norm_sizes(x, weight, bias, residual, x_bias)
    _same_dtype("layer_norm", weight=weight, bias=bias)
    _floating("layer_norm", x=x, weight=weight, residual=residual)
    check_dropout_p(dropout_p)
    if resolve_backend(x) == "torch":
        return reference.layer_norm_ref(x, weight, bias, residual, x_bias=x_bias, eps=eps, dropout_p=dropout_p)
    from . import layer_norm as kernel

    out_dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    if autocast_dtype(x) is not None:
        out_dtype = torch.promote_types(out_dtype, torch.float32)
    dropout_p, seed = _draw(x, dropout_p, seed)
    return kernel.layer_norm(x, weight, bias, residual, x_bias, eps, dropout_p, seed, stream, out_dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None) -> Tensor:
    """activation(x @ weight.T + bias).

    x: (..., K). weight: (N, K). bias: (N,). activation: None, 'gelu_erf' (exact), 'gelu_tanh' or 'relu'.
    Returns (..., N). Products accumulate in float32; float32 inputs use tf32 only where PyTorch allows it.
    Raises ValueError for shapes that do not fit or an unknown activation, TypeError for mixed dtypes.
    """
    _check_linear("linear", x, weight, bias)
    _check_activation("linear", activation, optional=True)
    if resolve_backend(x) == "torch":
        return reference.linear_ref(x, weight, bias, activation=activation)
    from . import linear as kernel

    x, weight, bias = _autocast("linear", x=x, weight=weight, bias=bias)
    return kernel.linear(x, weight, bias, activation)


def qkv_linear(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor] | Sequence[None] = (None, None, None)) -> Tensor:
    """The query, key and value projections of one input in one launch, from three separate weights.

    x: (..., K). weights: three tensors (N, K). biases: three tensors (N,), or three times None.
    Returns (..., 3 * N): query, key and value side by side.
    Raises ValueError for shapes that do not fit or other than three weights and biases, TypeError for mixed dtypes.
    """
    if len(weights) != 3 or len(biases) != 3:
        raise ValueError(f"qkv_linear: expected three weights and three biases, got {len(weights)} and {len(biases)}")
    for name, weight, bias in zip(("query", "key", "value"), weights, biases):
        _check_linear(f"qkv_linear ({name})", x, weight, bias)
        same = torch.jit.is_tracing() or weight.shape == weights[0].shape
        if not same or (bias is None) != (biases[0] is None):
            raise ValueError(
                f"qkv_linear: expected {name} like query, weight {_shape(weights[0])} and bias "
                f"{_shape(biases[0])}, got {_shape(weight)} and {_shape(bias)}"
            )
    if resolve_backend(x) == "torch":
        return reference.qkv_linear_ref(x, weights, biases)
    from . import linear as kernel

    names = ("query", "key", "value", "query_bias", "key_bias", "value_bias")
    x, *rest = _autocast("qkv_linear", x=x, **dict(zip(names, (*weights, *biases))))
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

    The output bias belongs to the `layer_norm` that follows (its x_bias). As one operation the backward multiplies by
    the activation's derivative inside the product that makes the gradient of the inner state.
    x: (..., K). weight_in: (F, K). bias_in: (F,). weight_out: (N, F). activation: as in `linear`, not None.
    keep_inner: the kernels keep the state after the activation for the backward too, F elements a row, instead of making it
    again from the one before, which they keep in any case; the gradients are the same. PyTorch keeps both.
    Returns (..., N).
    Raises ValueError for shapes that do not fit or an unknown activation, TypeError for mixed dtypes.
    """
    _check_linear("feed_forward", x, weight_in, bias_in)
    if not torch.jit.is_tracing() and (weight_out.dim() != 2 or weight_out.shape[1] != weight_in.shape[0]):
        raise ValueError(
            f"feed_forward: expected weight_out of shape (N, {weight_in.shape[0]}) after weight_in of shape "
            f"{_shape(weight_in)}, got {_shape(weight_out)}"
        )
    if weight_out.dtype != x.dtype and autocast_dtype(x) is None:
        _same_dtype("feed_forward", input=x, weight_out=weight_out)
    _check_activation("feed_forward", activation, optional=False)
    if resolve_backend(x) == "torch":
        return reference.feed_forward_ref(x, weight_in, bias_in, weight_out, activation=activation)
    from . import linear as kernel

    x, weight_in, bias_in, weight_out = _autocast(
        "feed_forward", x=x, weight_in=weight_in, bias_in=bias_in, weight_out=weight_out
    )
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
    in `layer_norm`, applied after it. deterministic: table gradients are summed in a fixed order; False lets a GPU add
    them with atomics.
    Returns (..., N).
    Raises ValueError for shapes that do not fit, ids outside their table (looked at on the CPU; on a GPU when
    FASTBERT_DEBUG=1) or dropout_p outside [0, 1], TypeError for other dtypes.
    """
    tables = {"word_weight": word_weight, "token_type_weight": token_type_weight, "position_weight": position_weight}
    ids = {"input_ids": input_ids, "token_type_ids": token_type_ids, "position_ids": position_ids}
    for name, values in ids.items():
        if values.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"embedding: expected {name} of dtype int64 or int32, got {values.dtype}")
    if not torch.jit.is_tracing():
        _check_embedding_sizes(ids, tables, weight, bias)
    _same_dtype("embedding", **tables)
    _same_dtype("embedding", weight=weight, bias=bias)
    _floating("embedding", word_weight=word_weight, weight=weight)
    check_dropout_p(dropout_p)
    if resolve_backend(word_weight) == "torch":
        return reference.embedding_ref(
            input_ids, token_type_ids, position_ids, word_weight, token_type_weight, position_weight, weight, bias,
            padding_idx=padding_idx, eps=eps, dropout_p=dropout_p,
        )  # fmt: skip
    from . import embedding as kernel

    out_dtype = word_weight.dtype
    if autocast_dtype(word_weight) is not None:
        out_dtype = torch.promote_types(out_dtype, torch.float32)
    dropout_p, seed = _draw(word_weight, dropout_p, seed)
    return kernel.embedding(
        input_ids, token_type_ids, position_ids, word_weight, token_type_weight, position_weight, weight, bias,
        padding_idx, eps, dropout_p, seed, stream, deterministic, out_dtype,
    )  # fmt: skip


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    num_labelled: int | None = None,
) -> Tensor:
    """Cross entropy of hidden @ weight.T + bias against labels, computed at the labelled rows only.

    The masked-language-model loss (Devlin et al. 2019, §3.1) with its decoder: on a GPU the logits exist a chunk of rows
    at a time and never whole.
    hidden: (T, N). weight: decoder weight, (V, N). bias: decoder bias, (V,) or None. labels: int64 (T,), ignore_index
    where there is nothing to predict. reduction: 'mean' over the labelled rows (NaN where there are none, as in PyTorch)
    or 'sum'. num_labelled: how many labels differ from ignore_index where the caller knows; otherwise they are counted,
    which waits for the device. While tracing every row is computed.
    Returns a float32 scalar.
    Raises ValueError for shapes that do not fit, an unknown reduction or a label outside [0, V) (looked at as ids are in
    `embedding`), TypeError for mixed dtypes.
    """
    _check_linear("cross_entropy", hidden, weight, bias)
    if hidden.dim() != 2:
        raise ValueError(f"cross_entropy: expected hidden of shape (T, N), got {_shape(hidden)}")
    if not torch.jit.is_tracing() and labels.shape != hidden.shape[:1]:
        raise ValueError(f"cross_entropy: expected labels of shape ({hidden.shape[0]},), got {_shape(labels)}")
    if labels.dtype != torch.int64:
        raise TypeError(f"cross_entropy: expected labels of dtype int64, got {labels.dtype}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"cross_entropy: expected reduction 'mean' or 'sum', got {reduction!r}")
    if checks_values(labels) and labels.numel():
        wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= weight.shape[0]))]
        if wrong.numel():
            raise ValueError(f"cross_entropy: expected labels in [0, {weight.shape[0]}) or {ignore_index}, got {int(wrong[0])}")
    if not is_tracing():
        rows = _labelled_rows(labels, ignore_index, num_labelled)
        hidden, labels = hidden.index_select(0, rows), labels.index_select(0, rows)
    if resolve_backend(hidden) == "torch":
        return reference.cross_entropy_ref(hidden, weight, bias, labels, ignore_index=ignore_index, reduction=reduction)
    from . import cross_entropy as kernel

    hidden, weight, bias = _autocast("cross_entropy", hidden=hidden, weight=weight, bias=bias)
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
    """What `attention` derives from the sequence lengths, made once for all the layers that share them.

    cu_seqlens: int32 (batch_size + 1,), starting at 0 and not decreasing, where each sequence begins; it ends at
    total_tokens. max_seqlen: at least the longest. like: a tensor with the device and dtype of the qkv to come.
    seqused_k: int32 (batch_size,), how many leading rows of each sequence are keys; all where None.
    uniform: promises that every sequence has exactly max_seqlen rows.
    Raises ValueError for a cu_seqlens that is not such (values are looked at on the CPU, and on a GPU when
    FASTBERT_DEBUG=1), TypeError for another dtype.
    """
    _check_cu_seqlens(cu_seqlens, max_seqlen, total_tokens, seqused_k)
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

    qkv: (T, 3, H, D); the last axis contiguous, the others of any stride. D is a multiple of 8 from 16 to 128.
    cu_seqlens, max_seqlen, seqused_k: as in `attention_schedule`; rows past seqused_k attend but are not attended to, and
    a sequence without keys gives zeros. softmax_scale: positive factor on q·k, D ** -0.5 where None. causal: a row attends
    to itself and earlier rows only. dropout_p: probability of dropping an attention weight. seed, stream: as in
    `layer_norm`. schedule: the result of `attention_schedule` for the same lengths, where there is one.
    Returns (T, H, D).
    Raises ValueError for shapes that do not fit, an unsupported D, a bad cu_seqlens or softmax_scale, TypeError for other
    dtypes.
    """
    if not torch.jit.is_tracing():
        _check_qkv_sizes(qkv)
    _floating("attention", qkv=qkv)
    check_dropout_p(dropout_p)
    softmax_scale = qkv.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    if not softmax_scale > 0.0:
        raise ValueError(f"attention: expected a positive softmax_scale, got {softmax_scale}")
    if schedule is None:
        schedule = attention_schedule(cu_seqlens, max_seqlen, qkv.shape[0], qkv, seqused_k=seqused_k)
    if schedule.tiles is None:
        return reference.attention_torch(
            qkv, schedule.cu_seqlens, schedule.max_seqlen, seqused_k=schedule.seqused_k, softmax_scale=softmax_scale,
            causal=causal, dropout_p=dropout_p, runs=schedule.runs, uniform=schedule.uniform,
        )  # fmt: skip
    from .attention import op as kernel

    (qkv,) = _autocast("attention", qkv=qkv)
    dropout_p, seed = _draw(qkv, dropout_p, seed)
    return kernel.attention(qkv, schedule.tiles, schedule.max_seqlen, softmax_scale, causal, dropout_p, seed, stream)


def check_ids(name: str, ids: Tensor, table: str, rows: int) -> None:
    """Raises ValueError for ids outside [0, rows), where values may be looked at (see `embedding`)."""
    if checks_values(ids) and ids.numel():
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high >= rows:
            raise ValueError(f"embedding: expected {name} in [0, {rows}), the rows of {table}, got values from {low} to {high}")


def _shape(tensor: Tensor | None) -> str:
    return "None" if tensor is None else str(tuple(tensor.shape))


def _same_dtype(operation: str, **tensors: Tensor | None) -> None:
    (first, expected), *others = ((name, tensor.dtype) for name, tensor in tensors.items() if tensor is not None)
    for name, dtype in others:
        if dtype != expected:
            raise TypeError(f"{operation}: expected {name} of dtype {expected} like {first}, got {dtype}")


def _floating(operation: str, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.dtype.is_floating_point:
            raise TypeError(f"{operation}: expected {name} of a floating-point dtype, got {tensor.dtype}")


# While torch.jit.trace records, sizes are tensors, and a comparison of two would be recorded as it came out: PyTorch's own
# checks remain.


def _check_norm_sizes(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, x_bias: Tensor | None) -> None:
    N = x.shape[-1] if x.dim() else 0
    for name, tensor in (("weight", weight), ("bias", bias), ("x_bias", x_bias)):
        if tensor is not None and tensor.shape != (N,):
            raise ValueError(f"layer_norm: expected {name} of shape ({N},) for x of shape {_shape(x)}, got {_shape(tensor)}")
    if N == 0 or N > MAX_NORM_SIZE:
        raise ValueError(f"layer_norm: expected a last axis of 1 to {MAX_NORM_SIZE}, got x of shape {_shape(x)}")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"layer_norm: expected residual of shape {_shape(x)} like x, got {_shape(residual)}")


def _check_embedding_sizes(ids: dict[str, Tensor], tables: dict[str, Tensor], weight: Tensor, bias: Tensor) -> None:
    N = weight.shape[0] if weight.dim() == 1 else -1
    if bias.shape != weight.shape or N < 1 or N > MAX_NORM_SIZE:
        raise ValueError(
            f"embedding: expected weight and bias of shape (N,), N at most {MAX_NORM_SIZE}, got {_shape(weight)} and "
            f"{_shape(bias)}"
        )
    shape = ids["input_ids"].shape
    for (name, table), (ids_name, values) in zip(tables.items(), ids.items()):
        if table.dim() != 2 or table.shape[1] != N:
            raise ValueError(f"embedding: expected {name} of shape (rows, {N}), got {_shape(table)}")
        if values.shape != shape:
            raise ValueError(f"embedding: expected {ids_name} of shape {tuple(shape)} like input_ids, got {_shape(values)}")
        check_ids(ids_name, values, name, table.shape[0])


def _check_qkv_sizes(qkv: Tensor) -> None:
    if qkv.dim() != 4 or qkv.shape[1] != 3:
        raise ValueError(f"attention: expected qkv of shape (tokens, 3, heads, head_dim), got {_shape(qkv)}")
    head_dim = qkv.shape[-1]
    if not MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM or head_dim % HEAD_DIM_MULTIPLE:
        raise ValueError(
            f"attention: expected head_dim a multiple of {HEAD_DIM_MULTIPLE} from {MIN_HEAD_DIM} to {MAX_HEAD_DIM}, got "
            f"{head_dim}"
        )


def _check_linear(operation: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if not torch.jit.is_tracing():
        if weight.dim() != 2 or x.dim() < 1 or x.shape[-1] != weight.shape[1]:
            raise ValueError(
                f"{operation}: expected a weight of shape (N, {x.shape[-1] if x.dim() else 0}) for an input of shape "
                f"{_shape(x)}, got {_shape(weight)}"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"{operation}: expected a bias of shape ({weight.shape[0]},), got {_shape(bias)}")
    same = weight.dtype == x.dtype and (bias is None or bias.dtype == x.dtype)
    if same and x.is_floating_point():
        return
    _floating(operation, input=x, weight=weight, bias=bias)
    if autocast_dtype(x) is None:
        _same_dtype(operation, input=x, weight=weight, bias=bias)


def _check_activation(operation: str, activation: str | None, optional: bool) -> None:
    if activation not in ACTIVATIONS and not (optional and activation is None):
        raise ValueError(f"{operation}: expected an activation among {ACTIVATIONS}, got {activation!r}")


def _check_cu_seqlens(cu_seqlens: Tensor, max_seqlen: int, total_tokens: int, seqused_k: Tensor | None) -> None:
    if cu_seqlens.dtype != torch.int32:
        raise TypeError(f"attention: expected cu_seqlens of dtype int32, got {cu_seqlens.dtype}")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1:
        raise ValueError(f"attention: expected cu_seqlens of shape (batch_size + 1,), got {_shape(cu_seqlens)}")
    if seqused_k is not None and (seqused_k.dtype != torch.int32 or seqused_k.shape[0] != cu_seqlens.shape[0] - 1):
        raise ValueError(
            f"attention: expected seqused_k int32 of shape ({cu_seqlens.shape[0] - 1},), got {seqused_k.dtype} "
            f"{_shape(seqused_k)}"
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


def _autocast(operation: str, **tensors: Tensor | None) -> list:
    dtype = autocast_dtype(next(tensor for tensor in tensors.values() if tensor is not None))
    if dtype is None:
        return list(tensors.values())
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors.values()]


def _draw(like: Tensor, dropout_p: float, seed: Tensor | None) -> tuple[float, Tensor | None]:
    if threshold(dropout_p) == 0:
        return 0.0, None
    return dropout_p, new_seed(like.device) if seed is None else seed


def _labelled_rows(labels: Tensor, ignore_index: int, num_labelled: int | None) -> Tensor:
    labelled = labels != ignore_index
    if num_labelled is None:
        return labelled.nonzero().squeeze(1)
    return torch.argsort(labelled.to(torch.uint8), descending=True, stable=True)[:num_labelled]
