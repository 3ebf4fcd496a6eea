"""The spec of embedding."""

import random

import torch
from torch import Tensor

from .. import functional, reference
from ..embedding import embedding_bwd_kernel, embedding_fwd_kernel
from ..layer_norm import LayerNormConfig
from ..primitives.segment_sum import CHUNK, JOIN_TILE, SEGMENT_ROWS, SEGMENT_WARPS, join_runs_kernel, sum_runs_kernel
from .layer_norm import dropout_mask
from .spec import Inputs, KernelVariant, OperationSpec, Sample, Workload, generator, nbytes, normal, seed_tensor
from .variants import signature


def _sample(
    name: str,
    shape: tuple[int, ...],
    N: int,
    *,
    vocab_size: int = 37,
    token_types: int = 2,
    positions: int = 29,
    same_ids: bool = False,
    padding_idx: int | None = None,
    id_dtype: torch.dtype = torch.int64,
    dropout_p: float = 0.0,
    shift: float = 0.0,
    row_pad: int = 0,
    seed: int = 0,
) -> Sample:
    """same_ids: every token has the last row of each table. shift: the mean of the tables. row_pad: columns of memory between
    their rows. padding_idx: every second token is padding."""

    def make(dtype: torch.dtype, device: torch.device) -> Inputs:
        g = generator(seed)

        def ids(rows: int) -> Tensor:
            drawn = torch.randint(0, rows, shape, generator=g)
            return (torch.full_like(drawn, rows - 1) if same_ids else drawn).to(device=device, dtype=id_dtype)

        def table(rows: int) -> Tensor:
            return normal((rows, N + row_pad), dtype, device, g, mean=shift)[:, :N]

        inputs: Inputs = {
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
        if padding_idx is not None:
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
        f"fuzz-{shape}-{N}",
        shape,
        N,
        vocab_size=rng.choice((1, 3, 50, 1000)),
        token_types=rng.randint(1, 4),
        positions=rng.choice((1, 7, 512)),
        same_ids=rng.random() < 0.1,
        padding_idx=rng.choice((None, 0)),
        id_dtype=rng.choice((torch.int32, torch.int64)),
        dropout_p=rng.choice((0.0, 0.0, 0.1, 0.9)),
        shift=rng.choice((0.0, 0.0, 100.0)),
        row_pad=rng.choice((0, 0, 1, 8)),
        seed=rng.randint(0, 1 << 30),
    )


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
    """A packed batch of sentence pairs: words by Zipf's law, positions from 0 in each pair, its second half of type 1."""
    N, T, g = work.hidden_size, work.tokens, generator()
    inputs = _sample("workload", (T,), N, vocab_size=work.vocab_size, positions=max(512, *work.seqlens)).make(dtype, device)
    rank = torch.arange(1, work.vocab_size + 1, dtype=torch.float64)
    positions = [torch.arange(seqlen) for seqlen in work.seqlens]
    types = [(position >= len(position) // 2).long() for position in positions]
    return inputs | {
        "input_ids": torch.multinomial(1 / rank, T, replacement=True, generator=g).to(device),
        "position_ids": torch.cat(positions).to(device),
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


_TYPES = {
    **dict.fromkeys(("input_ids_ptr", "token_type_ids_ptr", "position_ids_ptr", "seed_ptr"), "*i64"),
    **dict.fromkeys(("mean_ptr", "rstd_ptr", "norm_partial_ptr", "token_type_partial_ptr"), "*fp32"),
    **dict.fromkeys(("dword_ptr", "dtoken_type_ptr", "dposition_ptr"), "*fp32"),
    **dict.fromkeys(("eps", "keep_scale"), "fp32"),
}
_DIVISIBLE = ("N", "stride_word_row", "stride_token_type_row", "stride_position_row")


def _forward_variant(name: str, dtype: str, config: LayerNormConfig, dropout: bool) -> KernelVariant:
    flags = {"HAS_DROPOUT": dropout, "SAVE": True, "BLOCK_M": config.BLOCK_M, "BLOCK_N": config.BLOCK_N}
    return KernelVariant(
        f"embedding fwd {name}",
        embedding_fwd_kernel,
        signature(embedding_fwd_kernel, flags, dtype, **_TYPES),
        flags,
        num_warps=config.num_warps,
        divisible=_DIVISIBLE,
    )


def _backward_variant(name: str, dtype: str, config: LayerNormConfig, dropout: bool, deterministic: bool) -> KernelVariant:
    flags = {
        "HAS_DROPOUT": dropout,
        "WRITE_DZ": deterministic,
        "ADD_WORD": not deterministic,
        "ADD_TOKEN_TYPE": False,
        "ADD_POSITION": not deterministic,
        "SUM_NORM": True,
        "SUM_TOKEN_TYPE": True,
        "BLOCK_N": config.BLOCK_N,
    }
    return KernelVariant(
        f"embedding bwd {name}{'' if deterministic else ' atomics'}",
        embedding_bwd_kernel,
        signature(embedding_bwd_kernel, flags, dtype, **_TYPES),
        flags,
        num_warps=config.num_warps,
        divisible=(*_DIVISIBLE, "stride_dy_row"),
    )


def _segment_sum_variants(dtype: str) -> list[KernelVariant]:
    types = {"ids_ptr": "*i32", "order_ptr": "*i64", "partial_ptr": "*fp32"}
    runs = {"CHUNK": CHUNK, "BLOCK_M": SEGMENT_ROWS, "BLOCK_N": 1024}
    joins = {"CHUNK": CHUNK, **JOIN_TILE}
    return [
        KernelVariant(
            f"segment runs N=768 {dtype}",
            sum_runs_kernel,
            signature(sum_runs_kernel, runs, dtype, **types),
            runs,
            num_warps=SEGMENT_WARPS,
            divisible=("N", "stride_rows_row"),
        ),
        KernelVariant(
            f"segment join N=768 {dtype}",
            join_runs_kernel,
            signature(join_runs_kernel, joins, dtype, **types),
            joins,
            num_warps=SEGMENT_WARPS,
            divisible=("N",),
        ),
    ]


def _variants() -> list[KernelVariant]:
    variants = []
    for N in (384, 768):  # 1024 compiles to the code of 768
        config = LayerNormConfig.for_size(N)
        for dtype in ("bf16", "fp32"):
            for dropout in (False, True):
                name = f"N={N} {dtype}{' dropout' if dropout else ''}"
                variants.append(_forward_variant(name, dtype, config, dropout))
                variants += [_backward_variant(name, dtype, config, dropout, deterministic) for deterministic in (True, False)]
    return [*variants, *_segment_sum_variants("bf16"), *_segment_sum_variants("fp32")]


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
