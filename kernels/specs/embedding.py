"""The spec of embedding."""

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import functional, reference
from ..limits import MAX_NORM_SIZE
from ..primitives.segment_sum import CHUNK
from .launches import COMPLETE, Point, cut, draws, rows
from .layer_norm import dropout_mask
from .spec import Inputs, KernelVariant, OperationSpec, Sample, Workload, generator, nbytes, normal, seed_tensor


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
    _sample("axis-in-blocks", (4,), 4500, dropout_p=0.1, token_types=3),  # longer than a backward holds at once
    _sample("axis-in-blocks-two-types", (5,), 8192, row_pad=8),
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
    gathered = tokens * N * inputs["word_weight"].element_size()
    ids = nbytes(inputs["input_ids"], inputs["token_type_ids"], inputs["position_ids"])
    small = nbytes(inputs["token_type_weight"], inputs["position_weight"])
    if backward:
        return 2 * gathered + ids + 2 * small + nbytes(inputs["word_weight"])
    return 2 * gathered + ids + small


_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_TYPINGS = (*((dtype, None) for dtype in _DTYPES), *((dtype, torch.bfloat16) for dtype in _DTYPES))  # of the tables, autocast
_WANTED = ("word_weight", "token_type_weight", "position_weight", "weight")


def _call(
    M, N, typing, *, table_rows=(64, 2, 64), id_dtype=torch.int64, padding_idx=0, dropout=False, wanted=_WANTED,
    layout="contiguous", deterministic=True,
) -> None:  # fmt: skip
    """Forward, and backward to the tables and parameters that are wanted."""
    dtype, half = typing
    names = ("word_weight", "token_type_weight", "position_weight")
    ids: dict[str, Any] = {name: torch.zeros(M, dtype=id_dtype) for name in ("input_ids", "token_type_ids", "position_ids")}
    tensors: dict[str, Any] = {name: cut((count, N), dtype, layout) for name, count in zip(names, table_rows)}
    tensors |= {"weight": torch.zeros(N, dtype=dtype), "bias": torch.zeros(N, dtype=dtype)}
    leaves = [tensor.requires_grad_() for name, tensor in tensors.items() if name in wanted]
    options: dict[str, Any] = dict(dropout_p=0.1, seed=seed_tensor(1, torch.device("cpu"))) if dropout else {}
    with torch.autocast("cpu", dtype=half or torch.bfloat16, enabled=half is not None):
        y = functional.embedding(**ids, **tensors, padding_idx=padding_idx, deterministic=deterministic, **options)
    if leaves:
        torch.autograd.grad(y, leaves, cut((M, N), y.dtype, layout))


def _points(target: str) -> Iterator[Point]:
    """BERT's own: inference and training, with the vocabulary of BERT and its padding word 0."""
    for dtype, half in (_TYPINGS[0], _TYPINGS[2], (torch.float32, torch.bfloat16)):
        for dropout, wanted, deterministic in (
            (False, (), True),
            (False, _WANTED, True),
            (True, _WANTED, True),
            (True, _WANTED, False),
        ):
            case = dict(table_rows=(30522, 2, 512), dropout=dropout, wanted=wanted, deterministic=deterministic)
            yield Point(partial(_call, 2 * CHUNK, 768, (dtype, half), **case), of_bert=True)
    if target not in COMPLETE:
        return
    sizes = [size for exponent in range(6, MAX_NORM_SIZE.bit_length()) for size in (1 << exponent, (1 << exponent) - 3)]
    options: dict[str, Any] = dict(
        table_rows=((64, 2, 64), (37, 1, 29), (1, 3, 16), (48, 16, 1)),
        id_dtype=(torch.int32, torch.int64),
        padding_idx=(None, 0, 1, 3),
        dropout=(False, True),
        wanted=(_WANTED, _WANTED, (), *((name,) for name in _WANTED), _WANTED[:3]),
        layout=("contiguous", "contiguous", "padded", "far", "unaligned"),
        deterministic=(False, True),
    )
    for N, typing, drawn in draws(0, ((1, *sizes), _TYPINGS), 4, **options):
        drawn["padding_idx"] = drawn["padding_idx"] if drawn["table_rows"][0] > 3 else None
        yield Point(partial(_call, 2 * CHUNK if N <= 1024 else 2, N, typing, **drawn))


def _variants() -> list[KernelVariant]:
    """The launches; a row of float32 with dropout is too wide for the registers of one program at the limit of the size."""
    return [
        replace(variant, spills=f"{MAX_NORM_SIZE} float32 of a row are in registers, and no BERT is so wide")
        if variant.constexprs.get("BLOCK_N") == MAX_NORM_SIZE and variant.signature["word_ptr"] == "*fp32"
        else variant
        for variant in rows(_points)
    ]


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
