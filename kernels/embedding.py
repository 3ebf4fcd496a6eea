"""The embedding of BERT: y = dropout(norm(word[id] + token_type[id] + position[id])), forward and backward.

input_ids, token_type_ids, position_ids: (M,) int32 or int64; tables: (rows, N), with a row at least; weight, bias: (N,); mean,
rstd: (M,) float32. A token with an id outside its table has NaN for its output, where dropout keeps it, and, through rstd,
for all that it adds to the gradients of the tables; no row is read or written for that id. Saved for the backward: mean and
rstd. The backward gathers the rows of the tables again, which reads no more than a saved sum of them would. Gradients of the
layer norm, and of a token type table of at most two rows: float32 partial sums per program, added in a fixed order. Gradients
of the other tables: by sorting the ids (segment_sum), or with float32 atomics where the caller allows them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device import cdiv, num_programs
from .dropout import scale, threshold
from .layer_norm import MEANS_BLOCK, MEANS_WARPS, LayerNormConfig
from .primitives.layout import last_contiguous
from .primitives.philox import keep_adjacent
from .primitives.reduce import sum_partials
from .primitives.segment_sum import segment_sum
from .primitives.tiles import offsets
from .registration import register, wants_grad

REGISTER_TOKEN_TYPES = 2  # up to this many rows, the gradient of the token type table is summed in registers


@triton.jit
def _is_row(ids, num_rows):
    """Whether ids name rows of a table that has num_rows of them."""
    return (ids >= 0) & (ids < num_rows)


@triton.jit
def _row_or_none(ids, num_rows):
    """ids as int32, -1 where they name no row of the table."""
    return tl.where(_is_row(ids, num_rows), ids, -1).to(tl.int32)


@triton.jit
def _at_least_0(row):
    return tl.maximum(row, 0).to(tl.int64)


_ROWS = ["num_words", "num_token_types", "num_positions"]  # of the tables: one kernel for every size


@triton.jit(do_not_specialize=["M", *_ROWS, "keep_threshold", "stream"])
def embedding_fwd_kernel(
    input_ids_ptr, token_type_ids_ptr, position_ids_ptr, word_ptr, token_type_ptr, position_ptr, weight_ptr, bias_ptr,
    seed_ptr, y_ptr, mean_ptr, rstd_ptr,
    M, N, num_words, num_token_types, num_positions, stride_word_row, stride_token_type_row, stride_position_row,
    eps, keep_threshold, keep_scale, stream,
    HAS_DROPOUT: tl.constexpr, SAVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    mask_m = offs_m < M
    mask_n = offs_n < N
    mask = mask_m[:, None] & mask_n[None, :]

    word = tl.load(input_ids_ptr + offs_m, mask=mask_m, other=0)  # [BLOCK_M]
    token_type = tl.load(token_type_ids_ptr + offs_m, mask=mask_m, other=0)  # [BLOCK_M]
    position = tl.load(position_ids_ptr + offs_m, mask=mask_m, other=0)  # [BLOCK_M]
    exist = _is_row(word, num_words) & _is_row(token_type, num_token_types) & _is_row(position, num_positions)  # [BLOCK_M]
    mask_z = (mask_m & exist)[:, None] & mask_n[None, :]
    poison = tl.where(exist, 0.0, float("nan")).to(word_ptr.dtype.element_ty)[:, None]  # [BLOCK_M, 1]
    z = tl.load(word_ptr + offsets(word, offs_n, stride_word_row), mask=mask_z, other=poison)  # [BLOCK_M, BLOCK_N]
    z = z.to(tl.float32)
    token_type_ptrs = token_type_ptr + offsets(token_type, offs_n, stride_token_type_row)
    z += tl.load(token_type_ptrs, mask=mask_z, other=0.0).to(tl.float32)  # [BLOCK_M, BLOCK_N]
    position_ptrs = position_ptr + offsets(position, offs_n, stride_position_row)
    z += tl.load(position_ptrs, mask=mask_z, other=0.0).to(tl.float32)  # [BLOCK_M, BLOCK_N]

    mean = tl.sum(z, axis=1) / N  # [BLOCK_M]
    centred = tl.where(mask_n[None, :], z - mean[:, None], 0.0)  # [BLOCK_M, BLOCK_N]
    rstd = 1.0 / tl.sqrt_rn(tl.sum(centred * centred, axis=1) / N + eps)  # [BLOCK_M]
    weight = tl.load(weight_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)  # [BLOCK_N]
    bias = tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)  # [BLOCK_N]
    y = centred * rstd[:, None] * weight[None, :] + bias[None, :]  # [BLOCK_M, BLOCK_N]
    if HAS_DROPOUT:
        seed = tl.load(seed_ptr)  # scalar
        keep = keep_adjacent(seed, stream, offs_m, keep_threshold, BLOCK_M, BLOCK_N)  # [BLOCK_M, BLOCK_N]
        y = tl.where(keep, y * keep_scale, 0.0)
    tl.store(y_ptr + offs_m.to(tl.int64)[:, None] * N + offs_n[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)
    if SAVE:
        tl.store(mean_ptr + offs_m, mean, mask=mask_m)
        tl.store(rstd_ptr + offs_m, rstd, mask=mask_m)


@triton.jit
def _ids_of(ids_ptrs, row, table_rows):
    """(word, token type, position) of a token as int32, -1 where a table has no such row."""
    word = _row_or_none(tl.load(ids_ptrs[0] + row), table_rows[0])  # scalar
    token_type = _row_or_none(tl.load(ids_ptrs[1] + row), table_rows[1])  # scalar
    position = _row_or_none(tl.load(ids_ptrs[2] + row), table_rows[2])  # scalar
    return word, token_type, position


@triton.jit
def _dy_and_xhat(
    row, ids, dy_ptr, table_ptrs, mean_ptr, rstd_ptr, seed_ptr, strides, first_column, mask_n,
    keep_threshold, keep_scale, stream,
    HAS_DROPOUT: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradient of the layer norm's output and its normalised input, both [BLOCK_N]. strides: of dy and of the tables."""
    word, token_type, position = ids
    row_64 = row + tl.zeros([], tl.int64)
    offs_n = first_column + tl.arange(0, BLOCK_N)
    dy = tl.load(dy_ptr + row_64 * strides[0] + offs_n, mask=mask_n, other=0.0).to(tl.float32)  # [BLOCK_N]
    # Where there is no row, the first one is read: rstd is NaN, whatever z is.
    word_ptrs = table_ptrs[0] + _at_least_0(word) * strides[1] + offs_n
    z = tl.load(word_ptrs, mask=mask_n, other=0.0).to(tl.float32)  # [BLOCK_N]
    token_type_ptrs = table_ptrs[1] + _at_least_0(token_type) * strides[2] + offs_n
    z += tl.load(token_type_ptrs, mask=mask_n, other=0.0).to(tl.float32)  # [BLOCK_N]
    position_ptrs = table_ptrs[2] + _at_least_0(position) * strides[3] + offs_n
    z += tl.load(position_ptrs, mask=mask_n, other=0.0).to(tl.float32)  # [BLOCK_N]
    rstd = tl.load(rstd_ptr + row)  # scalar
    mean = tl.load(mean_ptr + row)  # scalar
    xhat = tl.where(mask_n, (z - mean) * rstd, 0.0)  # [BLOCK_N]
    if HAS_DROPOUT:
        seed = tl.load(seed_ptr)  # scalar
        rows = row + tl.zeros([1], tl.int32)
        keep = keep_adjacent(seed, stream, rows, keep_threshold, 1, BLOCK_N, first_column)  # [1, BLOCK_N]
        dy = tl.where(keep.reshape(BLOCK_N), dy * keep_scale, 0.0)
    return dy, xhat


@triton.jit(do_not_specialize=[*_ROWS, "keep_threshold", "stream"])
def embedding_bwd_means_kernel(
    dy_ptr, input_ids_ptr, token_type_ids_ptr, position_ids_ptr, word_ptr, token_type_ptr, position_ptr, weight_ptr,
    mean_ptr, rstd_ptr, seed_ptr, means_ptr,
    N, num_words, num_token_types, num_positions, stride_dy_row, stride_word_row, stride_token_type_row,
    stride_position_row, keep_threshold, keep_scale, stream,
    HAS_DROPOUT: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The means over a row of dy * weight * xhat and of dy * weight, BLOCK_N columns at a time."""
    row = tl.program_id(0)
    table_ptrs = (word_ptr, token_type_ptr, position_ptr)
    strides = (stride_dy_row, stride_word_row, stride_token_type_row, stride_position_row)
    ids_ptrs = (input_ids_ptr, token_type_ids_ptr, position_ids_ptr)
    ids = _ids_of(ids_ptrs, row, (num_words, num_token_types, num_positions))
    with_xhat = tl.zeros([BLOCK_N], tl.float32)
    alone = tl.zeros([BLOCK_N], tl.float32)
    for first_column in range(0, N, BLOCK_N):
        offs_n = first_column + tl.arange(0, BLOCK_N)
        mask_n = offs_n < N
        dy, xhat = _dy_and_xhat(
            row, ids, dy_ptr, table_ptrs, mean_ptr, rstd_ptr, seed_ptr, strides, first_column, mask_n,
            keep_threshold, keep_scale, stream, HAS_DROPOUT, BLOCK_N,
        )  # fmt: skip
        g = dy * tl.load(weight_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)  # [BLOCK_N]
        with_xhat += g * xhat
        alone += g
    out_ptr = means_ptr + 2 * row.to(tl.int64)
    tl.store(out_ptr, tl.sum(with_xhat, axis=0) / N)
    tl.store(out_ptr + 1, tl.sum(alone, axis=0) / N)


@triton.jit(do_not_specialize=["M", *_ROWS, "rows_per_program", "keep_threshold", "stream"])
def embedding_bwd_kernel(
    dy_ptr, input_ids_ptr, token_type_ids_ptr, position_ids_ptr, word_ptr, token_type_ptr, position_ptr, weight_ptr,
    mean_ptr, rstd_ptr, seed_ptr, means_ptr,
    dz_ptr, dword_ptr, dtoken_type_ptr, dposition_ptr, norm_partial_ptr, token_type_partial_ptr,
    M, N, num_words, num_token_types, num_positions, stride_dy_row, stride_word_row, stride_token_type_row,
    stride_position_row, rows_per_program, padding_idx, keep_threshold, keep_scale, stream,
    HAS_DROPOUT: tl.constexpr, WRITE_DZ: tl.constexpr, ADD_WORD: tl.constexpr, ADD_TOKEN_TYPE: tl.constexpr,
    ADD_POSITION: tl.constexpr, SUM_NORM: tl.constexpr, SUM_TOKEN_TYPE: tl.constexpr, IN_BLOCKS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """WRITE_DZ: stores dz, the gradient of the summed rows. ADD_*: adds dz to a float32 table with atomics. SUM_*: stores this
    program's partial sums for the layer norm's parameters, and for token types 0 and 1. IN_BLOCKS: as in
    `layer_norm_bwd_kernel`, after `embedding_bwd_means_kernel`."""
    program = tl.program_id(0)
    table_ptrs = (word_ptr, token_type_ptr, position_ptr)
    strides = (stride_dy_row, stride_word_row, stride_token_type_row, stride_position_row)
    ids_ptrs = (input_ids_ptr, token_type_ids_ptr, position_ids_ptr)
    first_column = tl.program_id(1) * BLOCK_N if IN_BLOCKS else 0
    offs_n = first_column + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    weight = tl.load(weight_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)  # [BLOCK_N]
    dweight = tl.zeros([BLOCK_N], tl.float32)
    dbias = tl.zeros([BLOCK_N], tl.float32)
    dtype_0 = tl.zeros([BLOCK_N], tl.float32)
    dtype_1 = tl.zeros([BLOCK_N], tl.float32)

    first = program * rows_per_program
    for row in range(first, tl.minimum(first + rows_per_program, M)):
        row_64 = row + tl.zeros([], tl.int64)
        ids = _ids_of(ids_ptrs, row, (num_words, num_token_types, num_positions))
        word, token_type, position = ids
        dy, xhat = _dy_and_xhat(
            row, ids, dy_ptr, table_ptrs, mean_ptr, rstd_ptr, seed_ptr, strides, first_column, mask_n,
            keep_threshold, keep_scale, stream, HAS_DROPOUT, BLOCK_N,
        )  # fmt: skip
        rstd = tl.load(rstd_ptr + row)  # scalar
        g = dy * weight
        if IN_BLOCKS:
            c1 = tl.load(means_ptr + 2 * row_64)  # scalar
            c2 = tl.load(means_ptr + 2 * row_64 + 1)  # scalar
        else:
            c1 = tl.sum(g * xhat, axis=0) / N
            c2 = tl.sum(g, axis=0) / N
        dz = (g - (xhat * c1 + c2)) * rstd  # [BLOCK_N]
        if WRITE_DZ:
            tl.store(dz_ptr + row_64 * N + offs_n, dz.to(dz_ptr.dtype.element_ty), mask=mask_n)
        if ADD_WORD:
            words = word + tl.zeros([BLOCK_N], tl.int32)  # [BLOCK_N]: Triton 3.9 takes no scalar in the mask
            counted = mask_n & (words >= 0) & (words != padding_idx)
            tl.atomic_add(dword_ptr + word.to(tl.int64) * N + offs_n, dz, mask=counted, sem="relaxed")
        if ADD_TOKEN_TYPE:
            token_type_ptrs = dtoken_type_ptr + token_type.to(tl.int64) * N + offs_n
            tl.atomic_add(token_type_ptrs, dz, mask=mask_n & (token_type >= 0), sem="relaxed")
        if ADD_POSITION:
            position_ptrs = dposition_ptr + position.to(tl.int64) * N + offs_n
            tl.atomic_add(position_ptrs, dz, mask=mask_n & (position >= 0), sem="relaxed")
        if SUM_NORM:
            dweight += dy * xhat
            dbias += dy
        if SUM_TOKEN_TYPE:
            dtype_0 += tl.where(token_type == 0, dz, 0.0)
            dtype_1 += tl.where(token_type == 1, dz, 0.0)

    partial = program.to(tl.int64) * 2 * N + offs_n
    if SUM_NORM:
        tl.store(norm_partial_ptr + partial, dweight, mask=mask_n)
        tl.store(norm_partial_ptr + partial + N, dbias, mask=mask_n)
    if SUM_TOKEN_TYPE:
        tl.store(token_type_partial_ptr + partial, dtype_0, mask=mask_n)
        tl.store(token_type_partial_ptr + partial + N, dtype_1, mask=mask_n)


def _embedding_fwd(*inputs):
    *tensors, _, eps, dropout_p, seed, stream, _, _, save = inputs
    y, mean, rstd = _embedding_fwd_fake(*inputs)
    M, N = y.shape
    if M == 0:
        return y, mean, rstd
    config = LayerNormConfig.for_size(N)
    embedding_fwd_kernel[(cdiv(M, config.BLOCK_M),)](
        *tensors, seed, y, mean, rstd,
        M, N, *(table.shape[0] for table in tensors[3:6]), *(table.stride(0) for table in tensors[3:6]),
        eps, threshold(dropout_p), scale(dropout_p), stream,
        HAS_DROPOUT=dropout_p > 0, SAVE=save, BLOCK_M=config.BLOCK_M, BLOCK_N=config.BLOCK_N, num_warps=config.num_warps,
    )  # fmt: skip
    return y, mean, rstd


def _embedding_fwd_fake(input_ids, token_type_ids, position_ids, word_weight, *rest):
    *_, out_dtype, save = rest
    M, N = input_ids.shape[0], word_weight.shape[1]
    y = torch.empty((M, N), dtype=out_dtype, device=word_weight.device)
    mean, rstd = (torch.empty((M if save else 0,), dtype=torch.float32, device=word_weight.device) for _ in range(2))
    return y, mean, rstd


def _embedding_bwd(*inputs):
    dy, ids, tables, (weight, mean, rstd, padding_idx, dropout_p, seed, stream, deterministic, *wanted) = _split(inputs)
    M, N = dy.shape
    if M == 0:
        return tuple(gradient.zero_() for gradient in _embedding_bwd_fake(*inputs))
    want_word, want_token_type, want_position, want_norm = wanted
    in_registers = want_token_type and tables[1].shape[0] <= REGISTER_TOKEN_TYPES
    others = (want_word, want_token_type and not in_registers, want_position)  # tables not summed in registers
    sorts = tuple(want and deterministic for want in others)
    adds = tuple(want and not deterministic for want in others)

    dz = torch.empty((M if any(sorts) else 0, N), dtype=tables[0].dtype, device=dy.device)
    dtables = [
        torch.zeros((table.shape[0] if add else 0, N), dtype=torch.float32, device=dy.device)
        for table, add in zip(tables, adds)
    ]
    config = LayerNormConfig.for_backward(N)
    columns = cdiv(N, config.BLOCK_N)
    programs = min(M, cdiv(num_programs(dy.device, config.programs_per_multiprocessor), columns))
    rows_per_program = cdiv(M, programs)
    programs = cdiv(M, rows_per_program)
    norm_partial, token_type_partial = (
        torch.empty((programs if want else 0, 2, N), dtype=torch.float32, device=dy.device)
        for want in (want_norm, in_registers)
    )
    sizes, strides = [table.shape[0] for table in tables], [table.stride(0) for table in tables]
    means = None
    if columns > 1:
        means = torch.empty((M, 2), dtype=torch.float32, device=dy.device)
        embedding_bwd_means_kernel[(M,)](
            dy, *ids, *tables, weight, mean, rstd, seed, means,
            N, *sizes, dy.stride(0), *strides, threshold(dropout_p), scale(dropout_p), stream,
            HAS_DROPOUT=dropout_p > 0, BLOCK_N=MEANS_BLOCK, num_warps=MEANS_WARPS,
        )  # fmt: skip
    embedding_bwd_kernel[(programs, columns)](
        dy, *ids, *tables, weight, mean, rstd, seed, means, dz, *dtables, norm_partial, token_type_partial,
        M, N, *sizes, dy.stride(0), *strides, rows_per_program,
        -1 if padding_idx is None else padding_idx, threshold(dropout_p), scale(dropout_p), stream,
        HAS_DROPOUT=dropout_p > 0, WRITE_DZ=any(sorts), ADD_WORD=adds[0], ADD_TOKEN_TYPE=adds[1], ADD_POSITION=adds[2],
        SUM_NORM=want_norm, SUM_TOKEN_TYPE=in_registers, IN_BLOCKS=columns > 1,
        BLOCK_N=config.BLOCK_N, num_warps=config.num_warps,
    )  # fmt: skip

    for i, (table, skip) in enumerate(zip(tables, (padding_idx, None, None))):
        dtables[i] = segment_sum(dz, ids[i], table.shape[0], skip, table.dtype) if sorts[i] else dtables[i].to(table.dtype)
    if in_registers:
        dtables[1] = sum_partials(token_type_partial, tables[1].dtype)[: tables[1].shape[0]]
    norm = sum_partials(norm_partial, weight.dtype) if want_norm else weight.new_empty((2, 0))
    return *dtables, norm


def _embedding_bwd_fake(*inputs):
    dy, _, tables, (weight, *_, want_word, want_token_type, want_position, want_norm) = _split(inputs)
    N = dy.shape[1]
    dtables = (
        torch.empty((table.shape[0] if want else 0, N), dtype=table.dtype, device=dy.device)
        for table, want in zip(tables, (want_word, want_token_type, want_position))
    )
    return *dtables, weight.new_empty((2, N if want_norm else 0))


def _split(inputs):
    """(dy, ids, tables, the rest) of the backward operator's inputs."""
    return inputs[0], inputs[1:4], inputs[4:7], inputs[7:]


embedding_bwd = register(
    "embedding_bwd(Tensor dy, Tensor input_ids, Tensor token_type_ids, Tensor position_ids, Tensor word_weight, "
    "Tensor token_type_weight, Tensor position_weight, Tensor weight, Tensor mean, Tensor rstd, int? padding_idx, "
    "float dropout_p, Tensor? seed, int stream, bool deterministic, bool want_word, bool want_token_type, "
    "bool want_position, bool want_norm) -> (Tensor, Tensor, Tensor, Tensor)",
    _embedding_bwd,
    fake=_embedding_bwd_fake,
)


def _setup_context(ctx, inputs, output):
    *tensors, _, ctx.padding_idx, _, ctx.dropout_p, seed, ctx.stream, ctx.deterministic, _, save = inputs
    _, mean, rstd = output
    if not save:
        raise RuntimeError("embedding_fwd was asked for a gradient but called with save=False")
    ctx.save_for_backward(*tensors, mean, rstd, seed)
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, *_):
    *tensors, mean, rstd, seed = ctx.saved_tensors
    want_tables, (want_weight, want_bias) = ctx.needs_input_grad[3:6], ctx.needs_input_grad[6:8]
    if dy is None:
        return (None,) * 16
    options = (ctx.padding_idx, ctx.dropout_p, seed, ctx.stream, ctx.deterministic)
    *dtables, norm = embedding_bwd(last_contiguous(dy), *tensors, mean, rstd, *options, *want_tables, want_weight or want_bias)
    return (
        *(None,) * 3,
        *(dtable if want else None for dtable, want in zip(dtables, want_tables)),
        norm[0] if want_weight else None,
        norm[1] if want_bias else None,
        *(None,) * 8,
    )


embedding_fwd = register(
    "embedding_fwd(Tensor input_ids, Tensor token_type_ids, Tensor position_ids, Tensor word_weight, "
    "Tensor token_type_weight, Tensor position_weight, Tensor weight, Tensor bias, int? padding_idx, float eps, "
    "float dropout_p, Tensor? seed, int stream, bool deterministic, ScalarType out_dtype, bool save) "
    "-> (Tensor, Tensor, Tensor)",
    _embedding_fwd,
    fake=_embedding_fwd_fake,
    setup_context=_setup_context,
    backward=_backward,
)


def embedding(
    ids, tables, weight, bias, padding_idx, eps, dropout_p, seed, stream, deterministic: bool, out_dtype: torch.dtype
) -> Tensor:
    """The kernel of `functional.embedding`, which documents and checks the arguments.

    ids: input, token type and position ids. tables: word, token type and position embeddings.
    """
    shape = (*ids[0].shape, weight.shape[0])
    ids = [values.reshape(-1).contiguous() for values in ids]
    tables = [last_contiguous(table) for table in tables]
    save = wants_grad(*tables, weight, bias)
    y = embedding_fwd(*ids, *tables, weight, bias, padding_idx, eps, dropout_p, seed, stream, deterministic, out_dtype, save)[0]
    return y.view(shape)
