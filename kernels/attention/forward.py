"""Softmax attention within each sequence of a packed batch: out = dropout(softmax(scale * q @ k.T)) @ v.

qkv: (T, 3, H, D), D a multiple of 8 from 16 to 128; out: (T, H, D). Sequences of at most 64 rows share tiles
(`attention_short`). Where all keys of a longer one fit one block, the softmax is taken at once; others take it online, block
by block (Milakov and Gimelshein 2018; Dao et al. 2022).
Saved for the backward: out and lse, the log-sum-exp of the scaled scores in base 2, float32 (H, T); infinite for a
sequence without keys. The dropout mask is drawn again from its seed.
"""

import random
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import functional, reference
from ..batch_invariance import LONGEST, is_batch_invariant
from ..device import is_amd
from ..dropout import scale, threshold
from ..registration import register, wants_grad
from ..specs import baselines
from ..specs.spec import Inputs, KernelVariant, OperationSpec, Sample, Workload, generator, nbytes, seed_tensor
from .backward import LOG2_E, attention_bwd, backward_variants
from .blocks import (
    EXACT_TILE,
    Problem,
    Tile,
    attends,
    dropout_mask,
    grid,
    keep_scores,
    load_rows,
    locate,
    shares_tiles,
    store_rows,
    variant,
    weights,
)
from .packing import packing_variants
from .schedule import PACK_ROWS, TILE_ROWS
from .short import attention_fwd_short_kernel, short_variants
from .work_list import tile_list_variants

MAX_STRIDE = (2**31 - 1) // 128  # offsets inside a tile are int32; those of the tile itself are int64


@triton.jit(do_not_specialize=["T", "keep_threshold", "stream", "more_than"])
def _attention_fwd_kernel(
    qkv_ptr, tiles_ptr, seed_ptr, out_ptr, lse_ptr,
    T, H, stride_token, stride_part, stride_head, scale_log2, keep_threshold, keep_scale, stream, more_than,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PIECES: tl.constexpr,
    ONE_BLOCK: tl.constexpr, CAUSAL: tl.constexpr, HAS_DROPOUT: tl.constexpr, SAVE_LSE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """out, and lse if asked for, of BLOCK_M rows of one head of a sequence of more than more_than rows."""
    head, start, rows, keys, first_row = locate(tiles_ptr, H, BLOCK_M, PIECES)
    if (rows <= more_than) | (first_row >= rows):
        return
    token = start + first_row
    token_64 = token.to(tl.int64)
    rows_left = rows - first_row
    seed = tl.load(seed_ptr) if HAS_DROPOUT else 0
    q_ptr = qkv_ptr + head * tl.cast(stride_head, tl.int64)
    k_ptr = q_ptr + tl.cast(stride_part, tl.int64)
    v_ptr = k_ptr + tl.cast(stride_part, tl.int64)
    q = load_rows(q_ptr + token_64 * stride_token, stride_token, rows_left, BLOCK_M, HEAD_DIM, BLOCK_D, True)

    # The last block may be ragged or cross the diagonal: it goes first and starts the sums, so that the loop needs no
    # mask. The branches are there for wgmma: its operands stay alive past neither, and the loop is known to run.
    RAW_MAX: tl.constexpr = q.dtype == tl.float32
    to_m = 1.0 if RAW_MAX else scale_log2
    from_m = scale_log2 if RAW_MAX else 1.0
    m_i = tl.zeros([BLOCK_M], tl.float32)
    l_i = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    last = tl.minimum(keys - 1, first_row + BLOCK_M - 1) if CAUSAL else keys - 1
    last = last // BLOCK_N * BLOCK_N
    if keys > 0:
        row = first_row + tl.arange(0, BLOCK_M)[:, None]
        block = (start + last).to(tl.int64) * stride_token
        k = load_rows(k_ptr + block, stride_token, keys - last, BLOCK_N, HEAD_DIM, BLOCK_D, True)
        v = load_rows(v_ptr + block, stride_token, keys - last, BLOCK_N, HEAD_DIM, BLOCK_D, True)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        s = tl.where(attends(row, last + tl.arange(0, BLOCK_N)[None, :], keys, CAUSAL), s, float("-inf"))
        m_i = tl.max(s, axis=1) * to_m
        p = weights(s, m_i, scale_log2, RAW_MAX)
        l_i = tl.sum(p, axis=1)
        if HAS_DROPOUT:
            p = tl.where(keep_scores(seed, stream, head, token, last, keep_threshold, BLOCK_M, BLOCK_N), p, 0.0)
        acc = tl.dot(p.to(v.dtype), v, input_precision=PRECISION)

    if not ONE_BLOCK:
        if last > 0:
            for key in range(0, last, BLOCK_N):
                block = (start + key).to(tl.int64) * stride_token
                k = load_rows(k_ptr + block, stride_token, BLOCK_N, BLOCK_N, HEAD_DIM, BLOCK_D, False)
                s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
                m_new = tl.maximum(m_i, tl.max(s, axis=1) * to_m)
                p = weights(s, m_new, scale_log2, RAW_MAX)
                alpha = tl.exp2((m_i - m_new) * from_m)
                l_i = l_i * alpha + tl.sum(p, axis=1)
                acc *= alpha[:, None]
                if HAS_DROPOUT:
                    p = tl.where(keep_scores(seed, stream, head, token, key, keep_threshold, BLOCK_M, BLOCK_N), p, 0.0)
                v = load_rows(v_ptr + block, stride_token, BLOCK_N, BLOCK_N, HEAD_DIM, BLOCK_D, False)
                acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
                m_i = m_new

    l_i = tl.where(keys > 0, l_i, 1.0)
    if RAW_MAX:
        acc = acc / l_i[:, None] * keep_scale
    else:
        acc *= (keep_scale / l_i)[:, None]
    store_rows(out_ptr + (token_64 * H + head) * HEAD_DIM, acc, H * HEAD_DIM, rows_left, BLOCK_M, HEAD_DIM, BLOCK_D)
    if SAVE_LSE:
        offs_m = tl.arange(0, BLOCK_M)
        lse = tl.where(keys > 0, m_i * from_m + tl.log2(l_i), float("inf"))
        tl.store(lse_ptr + head.to(tl.int64) * T + token + offs_m, lse, mask=offs_m < rows_left)


SHORT_TILE = Tile(PACK_ROWS, PACK_ROWS)


@dataclass(frozen=True)
class ForwardConfig:
    """ONE_BLOCK: every sequence's keys fit one block, so that the kernel has no loop. short: the tile that sequences share.

    Compiled for sm_90 at head_dim 64 in bf16, without and with dropout, no spill: short 74 registers (six
    blocks of threads per multiprocessor), one block 64x128 127 and 112 (four); loop 64x64 106 and 132 (four and three),
    64x128 167 (three, a fifth fewer instructions per score than 64x64). Not yet timed.
    """

    tile: Tile
    ONE_BLOCK: bool
    short: Tile | None = SHORT_TILE

    @classmethod
    def choose(cls, problem: Problem) -> "ForwardConfig":
        if problem.is_exact:
            return cls(EXACT_TILE, ONE_BLOCK=False, short=None)
        if problem.is_float32 and problem.is_wide:
            return cls(Tile(64 if problem.multiplies_from_shared else 32, 32, num_warps=8), ONE_BLOCK=False, short=None)
        if problem.is_float32 and not problem.multiplies_from_shared and not is_amd(problem.target):
            return cls(Tile(32, 64), ONE_BLOCK=False)
        if problem.max_seqlen <= 128:
            return cls(Tile(64, 128), ONE_BLOCK=True)
        is_long = problem.max_seqlen >= 256 and problem.target in ("sm_90", "cpu")
        if is_long and not (problem.is_float32 or problem.is_wide or problem.has_dropout):
            return cls(Tile(64, 128), ONE_BLOCK=False)
        return cls(Tile(64, 64, num_stages=3 if problem.head_dim <= 32 and problem.target == "sm_80" else 2), ONE_BLOCK=False)


def _attention_fwd(qkv, tiles, max_seqlen, softmax_scale, causal, dropout_p, seed, stream, save):
    T, _, H, D = qkv.shape
    out, lse = _attention_fwd_fake(qkv, tiles, max_seqlen, softmax_scale, causal, dropout_p, seed, stream, save)
    if T == 0:
        return out, lse
    is_invariant = is_batch_invariant()
    problem = Problem.of(qkv, LONGEST if is_invariant else max_seqlen, dropout_p)
    config = ForwardConfig.choose(problem)
    scalars = (
        T, H, qkv.stride(0), qkv.stride(1), qkv.stride(2),
        softmax_scale * LOG2_E, threshold(dropout_p), scale(dropout_p), stream,
    )  # fmt: skip
    flags = dict(
        HEAD_DIM=D, BLOCK_D=triton.next_power_of_2(D), CAUSAL=causal, HAS_DROPOUT=dropout_p > 0, SAVE_LSE=save,
        PRECISION=problem.precision,
    )  # fmt: skip
    more_than = 0  # sequences of at most this many rows have their output
    if config.short is not None and not is_invariant and shares_tiles(tiles, T, max_seqlen):
        _, _, packs, spans = tiles
        attention_fwd_short_kernel[grid(packs, H, 1)](
            qkv, packs, spans, seed, out, lse, *scalars, **flags, BLOCK=config.short.BLOCK_M, **config.short.options
        )
        more_than = config.short.BLOCK_M
    if problem.max_seqlen <= more_than:
        return out, lse
    tile = config.tile.no_taller(causal)
    pieces = TILE_ROWS[0] // tile.BLOCK_M
    _attention_fwd_kernel[grid(tiles[0], H, pieces)](
        qkv, tiles[0], seed, out, lse, *scalars, more_than, **flags,
        BLOCK_M=tile.BLOCK_M, BLOCK_N=tile.BLOCK_N, PIECES=pieces, ONE_BLOCK=config.ONE_BLOCK, **tile.options,
    )  # fmt: skip
    return out, lse


def _attention_fwd_fake(qkv, tiles, max_seqlen, softmax_scale, causal, dropout_p, seed, stream, save):
    T, _, H, D = qkv.shape
    out = torch.empty((T, H, D), dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty((H, T if save else 0), dtype=torch.float32, device=qkv.device)
    return out, lse


def _setup_context(ctx, inputs, output):
    qkv, tiles, ctx.max_seqlen, ctx.softmax_scale, ctx.causal, ctx.dropout_p, seed, ctx.stream, save = inputs
    out, lse = output
    if not save:
        raise RuntimeError("attention_fwd was asked for a gradient but called with save=False")
    ctx.save_for_backward(qkv, out, lse, seed, *tiles)
    ctx.set_materialize_grads(False)


def _backward(ctx, dout, _):
    qkv, out, lse, seed, *tiles = ctx.saved_tensors
    no_grads = ([None] * len(tiles), *(None,) * 7)
    if dout is None:
        return None, *no_grads
    if dout.stride(-1) != 1 or dout.stride(0) > MAX_STRIDE:
        dout = dout.contiguous()
    dqkv = attention_bwd(
        dout, qkv, out, lse, tiles, ctx.max_seqlen, ctx.softmax_scale, ctx.causal, ctx.dropout_p, seed, ctx.stream
    )
    return dqkv, *no_grads


attention_fwd = register(
    "attention_fwd(Tensor qkv, Tensor[] tiles, SymInt max_seqlen, float softmax_scale, bool causal, float dropout_p, "
    "Tensor? seed, int stream, bool save) -> (Tensor, Tensor)",
    _attention_fwd,
    fake=_attention_fwd_fake,
    setup_context=_setup_context,
    backward=_backward,
)


def attention(qkv, tiles, max_seqlen, softmax_scale, causal, dropout_p, seed, stream) -> Tensor:
    """The kernel behind `functional.attention`, which documents and checks the arguments."""
    if qkv.stride(-1) != 1 or qkv.stride(0) > MAX_STRIDE:
        qkv = qkv.contiguous()
    save = wants_grad(qkv)
    return attention_fwd(qkv, list(tiles), max_seqlen, softmax_scale, causal, dropout_p, seed, stream, save)[0]


def _sample(
    name: str, seqlens: tuple[int, ...], *, heads: int = 1, head_dim: int = 16, seqused_k: tuple[int, ...] | None = None,
    max_seqlen: int | None = None, causal: bool = False, dropout_p: float = 0.0, softmax_scale: float | None = None,
    value_shift: float = 0.0, layout: str = "packed", seed: int = 0,
) -> Sample:  # fmt: skip
    """layout: 'packed', 'wide' (a slice of a buffer wider in heads and head_dim) or 'heads_first' (tokens inside heads)."""

    def make(dtype: torch.dtype, device: torch.device) -> Inputs:
        T, g = sum(seqlens), generator(seed)
        shape = {"packed": (T, 3, heads, head_dim), "wide": (T, 3, heads + 1, head_dim + 24)}
        shape["heads_first"] = (3, heads, T, head_dim)
        x = torch.randn(shape[layout], generator=g)
        if layout == "wide":
            x = x[:, :, 1:, 8 : 8 + head_dim]
        elif layout == "heads_first":
            x = x.permute(2, 0, 1, 3)
        x[:, 2] += value_shift
        bounds = [0, *torch.tensor(seqlens).cumsum(0).tolist()]
        inputs = {
            # `empty_strided` rather than `to`, which would pack a view.
            "qkv": torch.empty_strided(x.shape, x.stride(), dtype=dtype, device=device).copy_(x),
            "cu_seqlens": torch.tensor(bounds, dtype=torch.int32, device=device),
            "max_seqlen": max(seqlens, default=0) if max_seqlen is None else max_seqlen,
            "softmax_scale": softmax_scale,
            "causal": causal,
        }
        if seqused_k is not None:
            inputs["seqused_k"] = torch.tensor(seqused_k, dtype=torch.int32, device=device)
        if dropout_p:
            inputs |= {"dropout_p": dropout_p, "seed": seed_tensor(4321 + seed, device), "stream": 3}
        return inputs

    return Sample(name, make)


_MIXED = (1, 17, 63, 64, 65, 127, 128, 129, 200)
_SAMPLES = (
    _sample("mixed-lengths", _MIXED),
    _sample("mixed-lengths-causal-dropout", (1, 17, 64, 65, 129, 200), causal=True, dropout_p=0.1),
    _sample("up-to-64", (33, 1, 64, 17), heads=2, head_dim=64),
    _sample("up-to-64-causal-dropout", (33, 64, 5), heads=2, head_dim=32, causal=True, dropout_p=0.2),
    _sample("up-to-128", (65, 3, 127, 128), head_dim=32),
    _sample("up-to-128-causal", (100, 128, 1), causal=True),
    _sample("up-to-128-dropout", (64, 128, 70), dropout_p=0.5),
    _sample("long", (512, 65)),
    _sample("long-dropout", (129, 300), dropout_p=0.1),
    _sample("one-token", (1,), heads=3),
    _sample("no-tokens", (0,)),
    _sample("an-empty-sequence", (40, 0, 7, 0)),
    _sample("head-dim-24", (50, 64), head_dim=24, heads=2),
    _sample("head-dim-40-causal", (140, 9), head_dim=40, causal=True),
    _sample("head-dim-72-causal", (40, 70), head_dim=72, causal=True),
    _sample("head-dim-64", (70, 20, 129), head_dim=64),
    _sample("head-dim-80-dropout", (66, 130), head_dim=80, dropout_p=0.1),
    _sample("head-dim-128", (129, 30), head_dim=128),
    _sample("head-dim-128-up-to-64-dropout", (30, 60), head_dim=128, dropout_p=0.1),
    _sample("values-shifted", (30, 200), head_dim=64, value_shift=100.0),
    _sample("sharp", (150, 40), head_dim=64, softmax_scale=1.5),
    _sample("slice-of-a-wider-buffer", (17, 140), heads=2, layout="wide"),
    _sample("tokens-inside-heads", (64, 130), heads=2, layout="heads_first", dropout_p=0.1),
    _sample("unused-keys", (40, 64, 65, 129, 30, 200), seqused_k=(0, 64, 1, 70, 29, 128)),
    _sample("unused-keys-up-to-64", (20, 64, 9), seqused_k=(0, 33, 9), causal=True),
    _sample("unused-keys-up-to-128-dropout", (100, 64, 128, 90), seqused_k=(100, 0, 65, 64), dropout_p=0.1),
    _sample("shared-by-many-one-token-sequences", (1,) * 70, heads=2),
    _sample("shared", (63, 1, 33, 33, 0, 0, 31, 64, 2, 20), head_dim=32),
    _sample(
        "shared-wide-causal-dropout", (9, 30, 1, 24, 17, 40), heads=2, head_dim=40, layout="wide", causal=True, dropout_p=0.2
    ),
    _sample("shared-heads-first-dropout", (3, 21, 40, 60, 5), heads=2, layout="heads_first", dropout_p=0.5),
    _sample("shared-unused-keys-dropout", (20, 0, 30, 14, 50, 9), seqused_k=(20, 0, 0, 5, 50, 1), causal=True, dropout_p=0.1),
    _sample("short-ones-among-long", (5, 40, 70, 3, 9, 2, 0, 1), max_seqlen=200, dropout_p=0.1),
    _sample("short-ones-among-up-to-128", (5, 40, 0, 80, 3), seqused_k=(5, 0, 0, 70, 2), causal=True),
    _sample("max-seqlen-beyond-the-longest", (5, 40, 90), max_seqlen=1000),
    _sample("all-dropped", (9, 20), dropout_p=1.0),
)


def _fuzz(rng: random.Random) -> Sample:
    longest = rng.choice((64, 64, 128, 260))
    seqlens = tuple(rng.choice((rng.randint(0, longest), rng.randint(0, 9))) for _ in range(rng.randint(1, 5)))
    seqlens += tuple(rng.randint(0, 40) for _ in range(rng.choice((0, 0, rng.randint(1, 9)))))
    seqused_k = tuple(rng.randint(0, seqlen) for seqlen in seqlens) if rng.random() < 0.25 else None
    head_dim, causal, dropout_p = 8 * rng.randint(2, 9), rng.random() < 0.3, rng.choice((0.0, 0.0, 0.1, 0.5))
    return _sample(
        f"fuzz-{seqlens}-D{head_dim}{'-causal' * causal}-p{dropout_p}", seqlens, heads=rng.randint(1, 3), head_dim=head_dim,
        seqused_k=seqused_k, max_seqlen=max(seqlens) + rng.choice((0, 0, 1, 70)), causal=causal, dropout_p=dropout_p,
        layout=rng.choice(("packed", "packed", "wide", "heads_first")), seed=rng.randint(0, 1 << 30),
    )  # fmt: skip


def _reference_inputs(inputs: Inputs) -> Inputs:
    inputs = dict(inputs)
    max_seqlen = inputs.pop("max_seqlen")
    dropout_p, seed, stream = inputs.pop("dropout_p", 0.0), inputs.pop("seed", None), inputs.pop("stream", 0)
    if seed is not None:
        tokens, _, heads, _ = inputs["qkv"].shape
        inputs["dropout_mask"] = dropout_mask(heads, tokens, max_seqlen, dropout_p, seed, stream)
    return inputs


def _prepare(inputs: Inputs) -> Inputs:
    """With the schedule, which a model makes once for all its layers."""
    qkv = inputs["qkv"]
    schedule = functional.attention_schedule(inputs["cu_seqlens"], inputs["max_seqlen"], qkv.shape[0], qkv)
    return inputs | {"schedule": schedule}


def _workload(work: Workload, dtype: torch.dtype, device: torch.device) -> Inputs:
    head_dim = work.hidden_size // work.num_heads
    return _sample("workload", work.seqlens, heads=work.num_heads, head_dim=head_dim).make(dtype, device)


def _flops(inputs: Inputs, backward: bool) -> int:
    """Two products of the scores' size forward, five backward."""
    _, _, heads, head_dim = inputs["qkv"].shape
    scores = heads * sum(seqlen**2 for seqlen in inputs["cu_seqlens"].diff().tolist())
    return 2 * head_dim * scores * (5 if backward else 2)


def _bytes_moved(inputs: Inputs, backward: bool) -> int:
    third = nbytes(inputs["qkv"]) // 3
    return (8 if backward else 4) * third  # backward: qkv, out and dout in, dqkv out


def _forward_variants(problem: Problem, causal: bool) -> list[KernelVariant]:
    config = ForwardConfig.choose(problem)
    variants = short_variants(attention_fwd_short_kernel, problem, causal, config.short, SAVE_LSE=True)
    if config.short is not None and problem.max_seqlen <= PACK_ROWS:
        return variants
    tile = config.tile.no_taller(causal)
    why = "tf32 tiles of 64 keys do not fit at this head_dim, and causal ones have no more rows than keys"
    flags = dict(
        BLOCK_M=tile.BLOCK_M, BLOCK_N=tile.BLOCK_N, PIECES=TILE_ROWS[0] // tile.BLOCK_M, ONE_BLOCK=config.ONE_BLOCK,
        CAUSAL=causal, SAVE_LSE=True,
    )  # fmt: skip
    part = "fwd one block" if config.ONE_BLOCK else "fwd"
    return [
        *variants,
        variant(
            _attention_fwd_kernel,
            part,
            problem,
            tile,
            flags,
            older_unit=why if not problem.is_exact and tile.BLOCK_M < 64 else "",
        ),
    ]


def _variants() -> list[KernelVariant]:
    """Each kernel once per set of targets that choose it; with dropout where that is the harder case for registers."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    cases = [(length, 64, bf16, "ieee", p, False) for length in (64, 128, 512) for p in (False, True)]
    cases += [(length, 64, bf16, "ieee", True, True) for length in (128, 512)]
    cases += [(length, 32, bf16, "ieee", True, False) for length in (128, 512)]
    cases += [(length, 128, bf16, "ieee", p, False) for length, p in ((64, True), (512, False), (512, True))]
    cases += [(512, 128, bf16, "ieee", True, True), (512, 80, bf16, "ieee", True, False), (64, 64, fp16, "ieee", False, False)]
    cases += [(length, 64, fp32, "tf32", True, False) for length in (64, 128, 512)]
    cases += [(512, 128, fp32, "tf32", True, False), (512, 128, fp32, "tf32", True, True)]
    cases += [(512, head_dim, fp32, "ieee", True, causal) for head_dim, causal in ((32, False), (64, False), (64, True))]
    merged: dict[str, list[KernelVariant]] = {}
    for target in ("sm_80", "sm_90", "sm_100", "gfx942"):
        for length, head_dim, dtype, precision, has_dropout, causal in cases:
            problem = Problem(length, head_dim, dtype, precision, has_dropout, target)
            for one in _forward_variants(problem, causal) + backward_variants(problem, causal):
                identity = repr((one.name, one.constexprs, one.num_warps, one.num_stages, one.unit))
                merged.setdefault(identity, []).append(one)
    variants = [replace(same[0], targets=tuple(dict.fromkeys(one.targets[0] for one in same))) for same in merged.values()]
    return tile_list_variants() + packing_variants() + variants


SPECS = (
    OperationSpec(
        name="attention",
        function=functional.attention,
        reference=reference.attention_ref,
        differentiable=("qkv",),
        samples=_SAMPLES,
        fuzz=_fuzz,
        workload=_workload,
        flops=_flops,
        bytes_moved=_bytes_moved,
        variants=_variants,
        reference_inputs=_reference_inputs,
        grad_factor=3.0,
        prepare=_prepare,
        baseline=baselines.padded_attention,
    ),
)
