"""The embedding of BERT: y = dropout(norm(word[id] + token_type[id] + position[id])), forward and backward.

input_ids, token_type_ids, position_ids: (M,) int32 or int64; tables: (rows, N); weight, bias: (N,); mean, rstd: (M,)
float32. Saved for the backward: mean and rstd. The sum is gathered again: that reads no more than a stored copy would.
Gradients: the norm's, and those of a token type table of at most two rows, as float32 partial sums per program, added in
a fixed order; the other tables' by sorting the ids (segment_sum), or with float32 atomics where the caller allows them.
"""

import random

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import functional, reference
from .device import cdiv, num_programs
from .dropout import scale, threshold
from .layer_norm import LayerNormConfig, dropout_mask
from .primitives.philox import keep_adjacent
from .primitives.reduce import sum_partials
from .primitives.segment_sum import CHUNK, _segment_joins_kernel, _segment_pieces_kernel, segment_sum
from .registration import register, wants_grad
from .specs.spec import Inputs, KernelVariant, OperationSpec, Sample, Workload, generator, nbytes, normal, seed_tensor

REGISTER_TOKEN_TYPES = 2  # so many rows of a token type table have their gradient summed in registers


@triton.jit(do_not_specialize=["M", "keep_threshold", "stream"])
def _embedding_fwd_kernel(
    input_ids_ptr, token_type_ids_ptr, position_ids_ptr, word_ptr, token_type_ptr, position_ptr, weight_ptr, bias_ptr,
    seed_ptr, y_ptr, mean_ptr, rstd_ptr,
    M, N, stride_word_row, stride_token_type_row, stride_position_row, eps, keep_threshold, keep_scale, stream,
    HAS_DROPOUT: tl.constexpr, SAVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    mask_m = offs_m < M
    mask_n = offs_n < N
    mask = mask_m[:, None] & mask_n[None, :]

    word = tl.load(input_ids_ptr + offs_m, mask=mask_m, other=0).to(tl.int64)[:, None] * stride_word_row
    token_type = tl.load(token_type_ids_ptr + offs_m, mask=mask_m, other=0).to(tl.int64)[:, None] * stride_token_type_row
    position = tl.load(position_ids_ptr + offs_m, mask=mask_m, other=0).to(tl.int64)[:, None] * stride_position_row
    z = tl.load(word_ptr + word + offs_n[None, :], mask=mask, other=0.0).to(tl.float32)
    z += tl.load(token_type_ptr + token_type + offs_n[None, :], mask=mask, other=0.0).to(tl.float32)
    z += tl.load(position_ptr + position + offs_n[None, :], mask=mask, other=0.0).to(tl.float32)

    mean = tl.sum(z, axis=1) / N
    centred = tl.where(mask_n[None, :], z - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt_rn(tl.sum(centred * centred, axis=1) / N + eps)
    weight = tl.load(weight_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    y = centred * rstd[:, None] * weight[None, :] + bias[None, :]
    if HAS_DROPOUT:
        keep = keep_adjacent(tl.load(seed_ptr), stream, offs_m, keep_threshold, BLOCK_M, BLOCK_N)
        y = tl.where(keep, y * keep_scale, 0.0)
    tl.store(y_ptr + offs_m.to(tl.int64)[:, None] * N + offs_n[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)
    if SAVE:
        tl.store(mean_ptr + offs_m, mean, mask=mask_m)
        tl.store(rstd_ptr + offs_m, rstd, mask=mask_m)


@triton.jit(do_not_specialize=["M", "rows_per_program", "keep_threshold", "stream"])
def _embedding_bwd_kernel(
    dy_ptr, input_ids_ptr, token_type_ids_ptr, position_ids_ptr, word_ptr, token_type_ptr, position_ptr, weight_ptr,
    mean_ptr, rstd_ptr, seed_ptr,
    dz_ptr, dword_ptr, dtoken_type_ptr, dposition_ptr, norm_partial_ptr, token_type_partial_ptr,
    M, N, stride_dy_row, stride_word_row, stride_token_type_row, stride_position_row, rows_per_program, padding_idx,
    keep_threshold, keep_scale, stream,
    HAS_DROPOUT: tl.constexpr, WRITE_DZ: tl.constexpr, ADD_WORD: tl.constexpr, ADD_TOKEN_TYPE: tl.constexpr,
    ADD_POSITION: tl.constexpr, SUM_NORM: tl.constexpr, SUM_TOKEN_TYPE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """WRITE_DZ: stores the gradient of the summed rows. ADD_*: adds it to a float32 table with atomics. SUM_*: leaves
    this program's share of the norm's gradients and of those of token types 0 and 1."""
    program = tl.program_id(0)
    offs_n = tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    weight = tl.load(weight_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    dweight = tl.zeros([BLOCK_N], tl.float32)
    dbias = tl.zeros([BLOCK_N], tl.float32)
    dtype_0 = tl.zeros([BLOCK_N], tl.float32)
    dtype_1 = tl.zeros([BLOCK_N], tl.float32)

    first = program * rows_per_program
    for row in range(first, tl.minimum(first + rows_per_program, M)):
        row_64 = row + tl.zeros([], tl.int64)
        word = tl.load(input_ids_ptr + row).to(tl.int64)
        token_type = tl.load(token_type_ids_ptr + row).to(tl.int64)
        position = tl.load(position_ids_ptr + row).to(tl.int64)
        dy = tl.load(dy_ptr + row_64 * stride_dy_row + offs_n, mask=mask_n, other=0.0).to(tl.float32)
        z = tl.load(word_ptr + word * stride_word_row + offs_n, mask=mask_n, other=0.0).to(tl.float32)
        z += tl.load(token_type_ptr + token_type * stride_token_type_row + offs_n, mask=mask_n, other=0.0).to(tl.float32)
        z += tl.load(position_ptr + position * stride_position_row + offs_n, mask=mask_n, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row)
        xhat = tl.where(mask_n, (z - tl.load(mean_ptr + row)) * rstd, 0.0)
        if HAS_DROPOUT:
            keep = keep_adjacent(tl.load(seed_ptr), stream, row + tl.zeros([1], tl.int32), keep_threshold, 1, BLOCK_N)
            dy = tl.where(keep.reshape(BLOCK_N), dy * keep_scale, 0.0)
        g = dy * weight
        c1 = tl.sum(g * xhat, axis=0) / N
        c2 = tl.sum(g, axis=0) / N
        dz = (g - (xhat * c1 + c2)) * rstd
        if WRITE_DZ:
            tl.store(dz_ptr + row_64 * N + offs_n, dz.to(dz_ptr.dtype.element_ty), mask=mask_n)
        if ADD_WORD:
            counted = word + tl.zeros([BLOCK_N], tl.int64) != padding_idx  # [BLOCK_N], whole: Triton 3.9 takes no scalar here
            tl.atomic_add(dword_ptr + word * N + offs_n, dz, mask=mask_n & counted, sem="relaxed")
        if ADD_TOKEN_TYPE:
            tl.atomic_add(dtoken_type_ptr + token_type * N + offs_n, dz, mask=mask_n, sem="relaxed")
        if ADD_POSITION:
            tl.atomic_add(dposition_ptr + position * N + offs_n, dz, mask=mask_n, sem="relaxed")
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


def _embedding_fwd(
    input_ids, token_type_ids, position_ids, word_weight, token_type_weight, position_weight, weight, bias, padding_idx, eps,
    dropout_p, seed, stream, deterministic, out_dtype, save,
):  # fmt: skip
    M, N = input_ids.shape[0], weight.shape[0]
    y, mean, rstd = _embedding_fwd_fake(
        input_ids, token_type_ids, position_ids, word_weight, token_type_weight, position_weight, weight, bias, padding_idx,
        eps, dropout_p, seed, stream, deterministic, out_dtype, save,
    )  # fmt: skip
    if M == 0:
        return y, mean, rstd
    config = LayerNormConfig.for_size(N)
    _embedding_fwd_kernel[(cdiv(M, config.BLOCK_M),)](
        input_ids, token_type_ids, position_ids, word_weight, token_type_weight, position_weight, weight, bias,
        seed, y, mean, rstd,
        M, N, word_weight.stride(0), token_type_weight.stride(0), position_weight.stride(0),
        eps, threshold(dropout_p), scale(dropout_p), stream,
        HAS_DROPOUT=dropout_p > 0, SAVE=save, BLOCK_M=config.BLOCK_M, BLOCK_N=config.BLOCK_N, num_warps=config.num_warps,
    )  # fmt: skip
    return y, mean, rstd


def _embedding_fwd_fake(
    input_ids, token_type_ids, position_ids, word_weight, token_type_weight, position_weight, weight, bias, padding_idx, eps,
    dropout_p, seed, stream, deterministic, out_dtype, save,
):  # fmt: skip
    M, N = input_ids.shape[0], weight.shape[0]
    y = torch.empty((M, N), dtype=out_dtype, device=word_weight.device)
    mean, rstd = (torch.empty((M if save else 0,), dtype=torch.float32, device=word_weight.device) for _ in range(2))
    return y, mean, rstd


def _embedding_bwd(
    dy, input_ids, token_type_ids, position_ids, word_weight, token_type_weight, position_weight, weight, mean, rstd,
    padding_idx, dropout_p, seed, stream, deterministic, want_word, want_token_type, want_position, want_norm,
):  # fmt: skip
    M, N = dy.shape
    ids = (input_ids, token_type_ids, position_ids)
    tables = (word_weight, token_type_weight, position_weight)
    in_registers = want_token_type and token_type_weight.shape[0] <= REGISTER_TOKEN_TYPES
    wanted = (want_word, want_token_type and not in_registers, want_position)  # the tables not summed in registers
    sorts, adds = (tuple(want and deterministic is choice for want in wanted) for choice in (True, False))

    if M == 0:
        gradients = _embedding_bwd_fake(
            dy, *ids, *tables, weight, mean, rstd, padding_idx, dropout_p, seed, stream, deterministic,
            want_word, want_token_type, want_position, want_norm,
        )  # fmt: skip
        return tuple(gradient.zero_() for gradient in gradients)
    dz = torch.empty((M if any(sorts) else 0, N), dtype=word_weight.dtype, device=dy.device)
    dtables = [
        torch.zeros((table.shape[0] if add else 0, N), dtype=torch.float32, device=dy.device)
        for table, add in zip(tables, adds)
    ]
    config = LayerNormConfig.for_size(N)
    programs = min(M, num_programs(dy.device, config.programs_per_multiprocessor))
    rows_per_program = cdiv(M, programs)
    programs = cdiv(M, rows_per_program)
    norm_partial, token_type_partial = (
        torch.empty((programs if want else 0, 2, N), dtype=torch.float32, device=dy.device)
        for want in (want_norm, in_registers)
    )
    _embedding_bwd_kernel[(programs,)](
        dy, *ids, *tables, weight, mean, rstd, seed, dz, *dtables, norm_partial, token_type_partial,
        M, N, dy.stride(0), *(table.stride(0) for table in tables), rows_per_program,
        -1 if padding_idx is None else padding_idx, threshold(dropout_p), scale(dropout_p), stream,
        HAS_DROPOUT=dropout_p > 0, WRITE_DZ=any(sorts), ADD_WORD=adds[0], ADD_TOKEN_TYPE=adds[1], ADD_POSITION=adds[2],
        SUM_NORM=want_norm, SUM_TOKEN_TYPE=in_registers, BLOCK_N=config.BLOCK_N, num_warps=config.num_warps,
    )  # fmt: skip

    for place, skip in enumerate((padding_idx, None, None)):
        if sorts[place]:
            dtables[place] = segment_sum(dz, ids[place], tables[place].shape[0], skip, tables[place].dtype)
        else:
            dtables[place] = dtables[place].to(tables[place].dtype)
    if in_registers:
        dtables[1] = sum_partials(token_type_partial, token_type_weight.dtype)[: token_type_weight.shape[0]]
    norm = sum_partials(norm_partial, weight.dtype) if want_norm else weight.new_empty((2, 0))
    return *dtables, norm


def _embedding_bwd_fake(
    dy, input_ids, token_type_ids, position_ids, word_weight, token_type_weight, position_weight, weight, mean, rstd,
    padding_idx, dropout_p, seed, stream, deterministic, want_word, want_token_type, want_position, want_norm,
):  # fmt: skip
    N = dy.shape[1]
    dtables = (
        torch.empty((table.shape[0] if want else 0, N), dtype=table.dtype, device=dy.device)
        for table, want in zip((word_weight, token_type_weight, position_weight), (want_word, want_token_type, want_position))
    )
    return *dtables, weight.new_empty((2, N if want_norm else 0))


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
    want_word, want_token_type, want_position, want_weight, want_bias = ctx.needs_input_grad[3:8]
    if dy is None:
        return (None,) * 16
    dy = dy if dy.stride(-1) == 1 else dy.contiguous()
    dword, dtoken_type, dposition, norm = embedding_bwd(
        dy, *tensors, mean, rstd, ctx.padding_idx, ctx.dropout_p, seed, ctx.stream, ctx.deterministic,
        want_word, want_token_type, want_position, want_weight or want_bias,
    )  # fmt: skip
    return (
        *(None,) * 3,
        dword if want_word else None,
        dtoken_type if want_token_type else None,
        dposition if want_position else None,
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
    input_ids, token_type_ids, position_ids, word_weight, token_type_weight, position_weight, weight, bias, padding_idx, eps,
    dropout_p, seed, stream, deterministic, out_dtype,
) -> Tensor:  # fmt: skip
    """The kernel behind `functional.embedding`, which documents and checks the arguments."""
    tables = [
        table if table.stride(-1) == 1 else table.contiguous() for table in (word_weight, token_type_weight, position_weight)
    ]
    ids = [ids.reshape(-1).contiguous() for ids in (input_ids, token_type_ids, position_ids)]
    save = wants_grad(*tables, weight, bias)
    y = embedding_fwd(*ids, *tables, weight, bias, padding_idx, eps, dropout_p, seed, stream, deterministic, out_dtype, save)[0]
    return y.view(*input_ids.shape, weight.shape[0])


# What the operation says of itself: samples, costs, shipped variants.


def _sample(
    name, shape, N, *, vocab_size=37, token_types=2, positions=29, same_ids=False, padding_idx=None, id_dtype=torch.int64,
    dropout_p=0.0, shift=0.0, row_pad=0, seed=0,
) -> Sample:  # fmt: skip
    def make(dtype: torch.dtype, device: torch.device) -> Inputs:
        g = generator(seed)

        def ids(rows: int) -> Tensor:
            drawn = torch.randint(0, rows, shape, generator=g)
            return (torch.full_like(drawn, rows - 1) if same_ids else drawn).to(device=device, dtype=id_dtype)

        def table(rows: int) -> Tensor:
            return normal((rows, N + row_pad), dtype, device, g, mean=shift)[:, :N]

        inputs = {
            "input_ids": ids(vocab_size),
            "token_type_ids": ids(token_types),
            "position_ids": ids(positions),
            "word_weight": table(vocab_size),
            "token_type_weight": table(token_types),
            "position_weight": table(positions),
            "weight": normal((N,), dtype, device, g, mean=1.0, std=0.2),
            "bias": normal((N,), dtype, device, g, std=0.2),
            "padding_idx": padding_idx,
        }
        if padding_idx is not None:  # every second token is padding
            inputs["input_ids"].view(-1)[::2] = padding_idx
        if dropout_p:
            inputs |= {"dropout_p": dropout_p, "seed": seed_tensor(1234 + seed, device), "stream": 2}
        return inputs

    return Sample(name, make)


_SAMPLES = (
    _sample("one-token", (1,), 768),
    _sample("batch-short-axis", (3, 7), 33),  # N below the smallest block, M not a multiple of BLOCK_M
    _sample("same-ids", (2 * CHUNK + 9,), 96, same_ids=True),  # each table's gradient falls on one row, over three chunks
    _sample("no-tokens", (0,), 96),
    _sample("axis-not-a-power-of-two", (17,), 1000),
    _sample("few-ids", (CHUNK + 30,), 64, vocab_size=5, token_types=3, positions=4),  # runs that cross chunks
    _sample("padding", (30,), 72, padding_idx=0, vocab_size=6),
    _sample("one-token-type", (9,), 40, token_types=1),
    _sample("int32-ids", (21,), 200, id_dtype=torch.int32),
    _sample("shifted", (13,), 256, shift=100.0),
    _sample("padded-rows", (11,), 160, row_pad=24),
    _sample("dropout", (23,), 200, dropout_p=0.1, padding_idx=3),
    _sample("all-dropped", (5,), 64, dropout_p=1.0),
    _sample("long-axis", (3,), 2500, dropout_p=0.5),
)


def _fuzz(rng: random.Random) -> Sample:
    most = rng.choice((12, 12, 12, 12, 2 * CHUNK + 9))
    shape, N = (rng.randint(0, most),), rng.randint(2, 300)
    return _sample(
        f"fuzz-{shape}-{N}", shape, N, vocab_size=rng.choice((1, 3, 50, 1000)), token_types=rng.randint(1, 4),
        positions=rng.choice((1, 7, 512)), same_ids=rng.random() < 0.1, padding_idx=rng.choice((None, 0)),
        id_dtype=rng.choice((torch.int32, torch.int64)), dropout_p=rng.choice((0.0, 0.0, 0.1, 0.9)),
        shift=rng.choice((0.0, 0.0, 100.0)), row_pad=rng.choice((0, 0, 1, 8)), seed=rng.randint(0, 1 << 30),
    )  # fmt: skip


def _reference_inputs(inputs: Inputs) -> Inputs:
    inputs = dict(inputs)
    seed, stream = inputs.pop("seed", None), inputs.pop("stream", 0)
    inputs.pop("deterministic", None)
    if seed is not None:
        ids, N = inputs["input_ids"], inputs["weight"].shape[0]
        mask = dropout_mask((ids.numel(), N), inputs["dropout_p"], seed, stream)
        inputs["dropout_mask"] = mask.view(*ids.shape, N)
    return inputs


def _workload(work: Workload, dtype: torch.dtype, device: torch.device) -> Inputs:
    """A packed batch of sentence pairs: words by Zipf's law, positions that start again, a second half of type 1."""
    N, T, g = work.hidden_size, work.tokens, generator()
    inputs = _sample("workload", (T,), N, vocab_size=work.vocab_size, positions=max(512, *work.seqlens)).make(dtype, device)
    rank = torch.arange(1, work.vocab_size + 1, dtype=torch.float64)
    places = [torch.arange(seqlen) for seqlen in work.seqlens]
    types = [(place >= len(place) // 2).long() for place in places]
    return inputs | {
        "input_ids": torch.multinomial(1 / rank, T, replacement=True, generator=g).to(device),
        "position_ids": torch.cat(places).to(device),
        "token_type_ids": torch.cat(types).to(device),
        "padding_idx": 0,
    }


def _flops(inputs: Inputs, backward: bool) -> int:
    return (19 if backward else 10) * inputs["input_ids"].numel() * inputs["weight"].shape[0]


def _bytes_moved(inputs: Inputs, backward: bool) -> int:
    """Forward: a word's row once per token, the small tables once, y. Backward: those, dy, and the tables' gradients."""
    tokens, N = inputs["input_ids"].numel(), inputs["weight"].shape[0]
    rows = tokens * N * inputs["word_weight"].element_size()
    ids = nbytes(inputs["input_ids"], inputs["token_type_ids"], inputs["position_ids"])
    small = nbytes(inputs["token_type_weight"], inputs["position_weight"])
    if backward:
        return 2 * rows + ids + 2 * small + nbytes(inputs["word_weight"])
    return 2 * rows + ids + small


def _variants() -> list[KernelVariant]:
    variants = []
    ids = dict(input_ids_ptr="*i64", token_type_ids_ptr="*i64", position_ids_ptr="*i64")
    strides = dict(stride_word_row="i32", stride_token_type_row="i32", stride_position_row="i32")
    dropout_signature = dict(keep_threshold="i32", keep_scale="fp32", stream="i32")
    for N in (384, 768):  # 1024 compiles to the code of 768
        config = LayerNormConfig.for_size(N)
        for dtype in ("bf16", "fp32"):
            p = f"*{dtype}"
            tables = dict(word_ptr=p, token_type_ptr=p, position_ptr=p)
            for dropout in (False, True):
                name = f"N={N} {dtype}{' dropout' if dropout else ''}"
                variants.append(
                    KernelVariant(
                        f"embedding fwd {name}", _embedding_fwd_kernel,
                        ids | tables | dict(weight_ptr=p, bias_ptr=p, seed_ptr="*i64", y_ptr=p, mean_ptr="*fp32",
                                            rstd_ptr="*fp32", M="i32", N="i32", eps="fp32") | strides | dropout_signature,
                        dict(HAS_DROPOUT=dropout, SAVE=True, BLOCK_M=config.BLOCK_M, BLOCK_N=config.BLOCK_N),
                        num_warps=config.num_warps, divisible=("N", *strides),
                    )
                )  # fmt: skip
                for deterministic in (True, False):
                    variants.append(
                        KernelVariant(
                            f"embedding bwd {name}{'' if deterministic else ' atomics'}", _embedding_bwd_kernel,
                            ids | tables | dict(
                                dy_ptr=p, weight_ptr=p, mean_ptr="*fp32", rstd_ptr="*fp32", seed_ptr="*i64", dz_ptr=p,
                                dword_ptr="*fp32", dtoken_type_ptr="*fp32", dposition_ptr="*fp32",
                                norm_partial_ptr="*fp32", token_type_partial_ptr="*fp32", M="i32", N="i32",
                                stride_dy_row="i32", rows_per_program="i32", padding_idx="i32",
                            ) | strides | dropout_signature,
                            dict(HAS_DROPOUT=dropout, WRITE_DZ=deterministic, ADD_WORD=not deterministic,
                                 ADD_TOKEN_TYPE=False, ADD_POSITION=not deterministic, SUM_NORM=True, SUM_TOKEN_TYPE=True,
                                 BLOCK_N=config.BLOCK_N),
                            num_warps=config.num_warps, divisible=("N", "stride_dy_row", *strides),
                        )
                    )  # fmt: skip
    for dtype in ("bf16", "fp32"):
        p = f"*{dtype}"
        variants += [
            KernelVariant(
                f"segment pieces N=768 {dtype}", _segment_pieces_kernel,
                dict(rows_ptr=p, ids_ptr="*i32", order_ptr="*i64", out_ptr=p, partial_ptr="*fp32", M="i32", N="i32",
                     stride_rows_row="i32", num_segments="i32", skip="i32"),
                dict(CHUNK=CHUNK, BLOCK_M=4, BLOCK_N=1024), num_warps=4, divisible=("N", "stride_rows_row"),
            ),
            KernelVariant(
                f"segment joins N=768 {dtype}", _segment_joins_kernel,
                dict(ids_ptr="*i32", partial_ptr="*fp32", out_ptr=p, N="i32", num_chunks="i32", num_segments="i32",
                     skip="i32"),
                dict(CHUNK=CHUNK, BLOCK_C=256, BLOCK_M=32, BLOCK_N=64), num_warps=4, divisible=("N",),
            ),
        ]  # fmt: skip
    return variants


SPECS = (
    OperationSpec(
        name="embedding",
        function=functional.embedding,
        reference=reference.embedding_ref,
        differentiable=("word_weight", "token_type_weight", "position_weight", "weight", "bias"),
        samples=_SAMPLES,
        fuzz=_fuzz,
        workload=_workload,
        flops=_flops,
        bytes_moved=_bytes_moved,
        variants=_variants,
        reference_inputs=_reference_inputs,
    ),
)
