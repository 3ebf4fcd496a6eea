"""The kernels of attention as its launchers compile them, for the codegen table.

For sm_80 and sm_90 the rows are every launch that `ForwardConfig.choose`, `BackwardConfig.choose` and the launchers can make:
all head sizes, lengths, dropout, causal, with and without lse, in bfloat16, float32 and tf32. float16 has the tiles of bfloat16
and other conversions only, so its rows are those of some head sizes. The other targets have chosen rows.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import torch
import triton

from ..attention.backward import attention_bwd_dkdv_kernel, attention_bwd_dq_kernel, attention_bwd_whole_kernel
from ..attention.config import BackwardConfig, ForwardConfig, Problem, Tile
from ..attention.forward import attention_fwd_kernel
from ..attention.packing import LANES, SPAN_SEQUENCES, packs_kernel, spans_kernel
from ..attention.schedule import PACK_ROWS, TILE_ROWS
from ..attention.short import attention_bwd_short_kernel, attention_fwd_short_kernel
from ..attention.work_list import NUM_WARPS, SEQUENCES, TILES, tile_lists_kernel
from ..limits import HEAD_DIM_MULTIPLE, MAX_HEAD_DIM, MIN_HEAD_DIM
from .spec import KernelVariant

COMPLETE_TARGETS = ("sm_80", "sm_90")
OTHER_TARGETS = ("sm_100", "gfx942")
HEAD_DIMS = tuple(range(MIN_HEAD_DIM, MAX_HEAD_DIM + 1, HEAD_DIM_MULTIPLE))
FLOAT16_HEAD_DIMS = (40, 64, 80)
LENGTHS = (1, 64, 65, 128, 129, 255, 256, 512)  # of the longest sequence: either side of every length that the choice asks for
DTYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
ARGUMENT_TYPES = {  # other pointers have the dtype of qkv, other scalars are int32
    "tiles_ptr": "*i32",
    "packs_ptr": "*i32",
    "spans_ptr": "*i32",
    "seed_ptr": "*i64",
    "lse_ptr": "*fp32",
    "delta_ptr": "*fp32",
    "stride_part": "i64",
    "stride_head": "i64",
    "stride_dout_head": "i64",
    "softmax_scale": "fp32",
    "scale_log2": "fp32",
    "keep_scale": "fp32",
}


@cache
def variants() -> list[KernelVariant]:
    """Each kernel once per set of targets that launch it."""
    merged: dict[str, list[KernelVariant]] = {}
    for problem, saves in (*_every_problem(), *_chosen_problems()):
        for one in (*_forward(problem, saves), *_backward(problem)):
            identity = repr((one.name, one.constexprs, one.num_warps, one.num_stages, one.unit))
            merged.setdefault(identity, []).append(one)
    merged_variants = [replace(same[0], targets=tuple(dict.fromkeys(v.targets[0] for v in same))) for same in merged.values()]
    return [*_tile_lists(), *_packing(), *merged_variants]


def _every_problem() -> Iterator[tuple[Problem, Iterable[bool]]]:
    """(problem, values of SAVE_LSE) of every launch for the complete targets."""
    kinds = ((torch.bfloat16, "ieee"), (torch.float32, "ieee"), (torch.float32, "tf32"))
    for target, length, has_dropout in product(COMPLETE_TARGETS, LENGTHS, (False, True)):
        for (dtype, precision), head_dim, causal in product(kinds, HEAD_DIMS, (False, True)):
            yield Problem(length, head_dim, dtype, precision, has_dropout, causal, target), (True, False)
        for head_dim in FLOAT16_HEAD_DIMS:
            yield Problem(length, head_dim, torch.float16, "ieee", has_dropout, False, target), (True,)


def _chosen_problems() -> Iterator[tuple[Problem, Iterable[bool]]]:
    """The same for the other targets, with dropout where that is the harder case for registers."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    # (max_seqlen, head_dim, dtype, precision, has_dropout, causal)
    cases = [(length, 64, bf16, "ieee", p, False) for length in (64, 128, 512) for p in (False, True)]
    cases += [(length, 64, bf16, "ieee", True, True) for length in (128, 512)]
    cases += [(length, 32, bf16, "ieee", True, False) for length in (128, 512)]
    cases += [(length, 128, bf16, "ieee", p, False) for length, p in ((64, True), (512, False), (512, True))]
    cases += [(512, 128, bf16, "ieee", True, True), (512, 80, bf16, "ieee", True, False), (64, 64, fp16, "ieee", False, False)]
    cases += [(length, 64, fp32, "tf32", True, False) for length in (64, 128, 512)]
    cases += [(512, 128, fp32, "tf32", True, False), (512, 128, fp32, "tf32", True, True)]
    cases += [(512, head_dim, fp32, "ieee", True, causal) for head_dim, causal in ((32, False), (64, False), (64, True))]
    for target in OTHER_TARGETS:
        for length, head_dim, dtype, precision, has_dropout, causal in cases:
            yield Problem(length, head_dim, dtype, precision, has_dropout, causal, target), (True,)


def _forward(problem: Problem, saves: Iterable[bool]) -> Iterator[KernelVariant]:
    """The kernels that a forward of this problem launches."""
    config = ForwardConfig.choose(problem)
    tile = config.tile.capped_for_causal(problem.causal)
    part = "fwd one block" if config.ONE_BLOCK else "fwd"
    why = "tf32 tiles of 64 keys do not fit at this head_dim, and causal ones have no more rows than keys"
    older_unit = why if not problem.is_exact and tile.BLOCK_M < 64 else ""
    for save in saves:
        if config.short is not None:
            yield _short(attention_fwd_short_kernel, "fwd short", problem, config.short, SAVE_LSE=save)
        # Short sequences may be too few to share tiles; in batch-invariant mode they never do.
        constexprs = {
            "BLOCK_M": tile.BLOCK_M,
            "BLOCK_N": tile.BLOCK_N,
            "BLOCKS_PER_TILE": TILE_ROWS[0] // tile.BLOCK_M,
            "ONE_BLOCK": config.ONE_BLOCK,
            "SAVE_LSE": save,
        }
        if config.short is None or problem.max_seqlen > PACK_ROWS:
            yield _variant(attention_fwd_kernel, part, problem, tile, constexprs, older_unit)


def _backward(problem: Problem) -> Iterator[KernelVariant]:
    """The kernels that a backward of this problem launches, with shared tiles for short sequences and without."""
    config = BackwardConfig.choose(problem)
    if config.short is not None:
        short = _short(attention_bwd_short_kernel, "bwd short", problem, config.short)
        waits = "with 4 warps it does not, and heads above 64 spill" if problem.is_wide else ""
        yield replace(short, added_waits=waits)
        yield from _backward_of_the_rest(problem, config, PACK_ROWS + 1)
    if config.short is None or problem.max_seqlen > PACK_ROWS:
        yield from _backward_of_the_rest(problem, config, 1)


def _backward_of_the_rest(problem: Problem, config: BackwardConfig, min_seqlen: int) -> Iterator[KernelVariant]:
    """The kernels of sequences of at least min_seqlen rows."""
    for tile in config.whole_tiles_for(problem.max_seqlen):
        if tile.BLOCK_M >= min_seqlen:
            constexprs = {"BLOCK": tile.BLOCK_M, "MIN_SEQLEN": min_seqlen}
            yield _variant(attention_bwd_whole_kernel, "bwd whole", problem, tile, constexprs)
            min_seqlen = tile.BLOCK_M + 1
    if problem.max_seqlen < min_seqlen:
        return
    dq = config.dq.capped_for_causal(problem.causal)
    for kernel, part, tile, rows in (
        (attention_bwd_dq_kernel, "bwd dq", dq, dq.BLOCK_M),
        (attention_bwd_dkdv_kernel, "bwd dkdv", config.dkdv, config.dkdv.BLOCK_N),
    ):
        constexprs = {"BLOCK_M": tile.BLOCK_M, "BLOCK_N": tile.BLOCK_N, "BLOCKS_PER_TILE": TILE_ROWS[0] // rows}
        constexprs["MIN_SEQLEN"] = min_seqlen
        why = "tf32 tiles of 64 keys spill at this head_dim; wgmma takes no fewer rows"
        older_unit = why if not problem.is_exact and rows < 64 else ""
        yield _variant(kernel, part, problem, tile, constexprs, older_unit)


def _short(kernel, part: str, problem: Problem, tile: Tile, **constexprs: bool) -> KernelVariant:
    """The kernel of short sequences that share tiles."""
    return _variant(kernel, part, problem, tile, {"BLOCK": tile.BLOCK_M, **constexprs})


def _packing() -> list[KernelVariant]:
    packs = {"cu_seqlens_ptr": "*i32", "packs_ptr": "*i32", "B": "i32", "chunk": "i32"}
    spans = {"cu_seqlens_ptr": "*i32", "seqused_k_ptr": "*i32", "spans_ptr": "*i32", "B": "i32", "T": "i32"}
    spans_constexprs = {"SEQUENCES": SPAN_SEQUENCES, "ROWS": PACK_ROWS}
    return [
        KernelVariant("attention packs", packs_kernel, packs, {"LANES": LANES, "ROWS": PACK_ROWS}, num_warps=4, of_bert=True),
        *_with_and_without_unused("attention spans", spans_kernel, spans, spans_constexprs, 4),
    ]


def _tile_lists() -> list[KernelVariant]:
    pointers = dict.fromkeys(("cu_seqlens_ptr", "seqused_k_ptr", "low_ptr", "high_ptr"), "*i32")
    integers = dict.fromkeys(("B", "low_bound", "high_bound"), "i32")
    constexprs = dict(LOW_ROWS=TILE_ROWS[0], HIGH_ROWS=TILE_ROWS[1], TILES=TILES, SEQUENCES=SEQUENCES)
    return _with_and_without_unused("attention tile lists", tile_lists_kernel, pointers | integers, constexprs, NUM_WARPS)


def _with_and_without_unused(
    name: str, kernel, signature: Mapping[str, str], constexprs: Mapping[str, int], num_warps: int
) -> list[KernelVariant]:
    return [
        KernelVariant(name + suffix, kernel, signature, {**constexprs, "HAS_UNUSED": has_unused}, num_warps, of_bert=True)
        for suffix, has_unused in (("", False), (" unused keys", True))
    ]


def _variant(
    kernel, part: str, problem: Problem, tile: Tile, constexprs: Mapping[str, Any], older_unit: str = ""
) -> KernelVariant:
    """What one launch of this kernel compiles. part: the kernel's name in the table, in which D<64 is 40, 48 and 56."""
    dtype, BLOCK_D = DTYPE_NAMES[problem.dtype], triton.next_power_of_2(problem.head_dim)
    is_padded = problem.head_dim < BLOCK_D
    constexprs = {
        "BLOCK_D": BLOCK_D,
        "IS_PADDED": is_padded,
        "CAUSAL": problem.causal,
        "HAS_DROPOUT": problem.has_dropout,
        "PRECISION": problem.precision,
        **constexprs,
        **({} if problem.has_dropout else {"seed_ptr": None}),
    }
    name = f"attention {part} D{'<' if is_padded else '='}{BLOCK_D} {dtype if dtype != 'fp32' else problem.precision}"
    name += f" {tile.BLOCK_M}x{tile.BLOCK_N}" + " causal" * problem.causal + " dropout" * problem.has_dropout
    name += " no lse" * (not constexprs.get("SAVE_LSE", True))
    return KernelVariant(
        name,
        kernel,
        {
            argument: ARGUMENT_TYPES.get(argument, f"*{dtype}" if argument.endswith("_ptr") else "i32")
            for argument in kernel.arg_names
            if argument not in constexprs
        },
        constexprs,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        unit="scalar" if problem.is_exact else "tensor",
        older_unit=older_unit,
        of_bert=problem.head_dim == 64 and problem.dtype == torch.bfloat16 and not problem.causal,
        targets=(problem.target,),
    )
