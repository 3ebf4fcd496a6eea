"""The kernels of attention as its launchers compile them, for the codegen table."""

from collections.abc import Mapping
from dataclasses import replace
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
from .spec import KernelVariant

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
DTYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
ARGUMENT_TYPES = {  # other pointers have the dtype of qkv, other scalars are int32
    "tiles_ptr": "*i32",
    "packs_ptr": "*i32",
    "spans_ptr": "*i32",
    "seed_ptr": "*i64",
    "lse_ptr": "*fp32",
    "delta_ptr": "*fp32",
    "softmax_scale": "fp32",
    "scale_log2": "fp32",
    "keep_scale": "fp32",
}


def variants() -> list[KernelVariant]:
    """Each kernel once per set of targets that choose it; with dropout where that is the harder case for registers."""
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
    merged: dict[str, list[KernelVariant]] = {}
    for target in TARGETS:
        for length, head_dim, dtype, precision, has_dropout, causal in cases:
            problem = Problem(length, head_dim, dtype, precision, has_dropout, target)
            for one in _forward(problem, causal) + _backward(problem, causal):
                identity = repr((one.name, one.constexprs, one.num_warps, one.num_stages, one.unit))
                merged.setdefault(identity, []).append(one)
    merged_variants = [replace(same[0], targets=tuple(dict.fromkeys(v.targets[0] for v in same))) for same in merged.values()]
    return [_tile_lists(), *_packing(), *merged_variants]


def _forward(problem: Problem, causal: bool) -> list[KernelVariant]:
    """The kernels that a forward of this problem launches."""
    config = ForwardConfig.choose(problem)
    short = _short(attention_fwd_short_kernel, "fwd short", problem, causal, config.short, SAVE_LSE=True)
    if config.short is not None and problem.max_seqlen <= PACK_ROWS:
        return short
    tile = config.tile.capped_for_causal(causal)
    constexprs = {
        "BLOCK_M": tile.BLOCK_M,
        "BLOCK_N": tile.BLOCK_N,
        "BLOCKS_PER_TILE": TILE_ROWS[0] // tile.BLOCK_M,
        "ONE_BLOCK": config.ONE_BLOCK,
        "CAUSAL": causal,
        "SAVE_LSE": True,
    }
    part = "fwd one block" if config.ONE_BLOCK else "fwd"
    why = "tf32 tiles of 64 keys do not fit at this head_dim, and causal ones have no more rows than keys"
    older_unit = why if not problem.is_exact and tile.BLOCK_M < 64 else ""
    return [*short, _variant(attention_fwd_kernel, part, problem, tile, constexprs, older_unit)]


def _backward(problem: Problem, causal: bool) -> list[KernelVariant]:
    """The kernels that a backward of this problem launches."""
    config = BackwardConfig.choose(problem)
    found = _short(attention_bwd_short_kernel, "bwd short", problem, causal, config.short)
    min_seqlen = 1
    for tile in config.whole_tiles_for(problem.max_seqlen):
        if config.short is None or problem.max_seqlen > PACK_ROWS:
            constexprs = {"BLOCK": tile.BLOCK_M, "MIN_SEQLEN": min_seqlen, "CAUSAL": causal}
            found.append(_variant(attention_bwd_whole_kernel, "bwd whole", problem, tile, constexprs))
        min_seqlen = tile.BLOCK_M + 1
    if problem.max_seqlen < min_seqlen:
        return found
    dq = config.dq.capped_for_causal(causal)
    for kernel, part, tile, rows in (
        (attention_bwd_dq_kernel, "bwd dq", dq, dq.BLOCK_M),
        (attention_bwd_dkdv_kernel, "bwd dkdv", config.dkdv, config.dkdv.BLOCK_N),
    ):
        constexprs = {"BLOCK_M": tile.BLOCK_M, "BLOCK_N": tile.BLOCK_N, "BLOCKS_PER_TILE": TILE_ROWS[0] // rows}
        constexprs |= {"MIN_SEQLEN": min_seqlen, "CAUSAL": causal}
        why = "tf32 tiles of 64 keys spill at this head_dim; wgmma takes no fewer rows"
        older_unit = why if not problem.is_exact and rows < 64 else ""
        found.append(_variant(kernel, part, problem, tile, constexprs, older_unit))
    return found


def _short(kernel, part: str, problem: Problem, causal: bool, tile: Tile | None, **constexprs: bool) -> list[KernelVariant]:
    """The kernel of packed short sequences; nothing where the problem has no tile for it."""
    if tile is None:
        return []
    return [_variant(kernel, part, problem, tile, {"BLOCK": tile.BLOCK_M, "CAUSAL": causal, **constexprs})]


def _packing() -> list[KernelVariant]:
    packs = {"cu_seqlens_ptr": "*i32", "packs_ptr": "*i32", "B": "i32", "chunk": "i32"}
    spans = {"cu_seqlens_ptr": "*i32", "seqused_k_ptr": "*i32", "spans_ptr": "*i32", "B": "i32", "T": "i32"}
    packs_constexprs = {"LANES": LANES, "ROWS": PACK_ROWS}
    spans_constexprs = {"HAS_UNUSED": True, "SEQUENCES": SPAN_SEQUENCES, "ROWS": PACK_ROWS}
    return [
        KernelVariant("attention packs", packs_kernel, packs, packs_constexprs, num_warps=4),
        KernelVariant("attention spans", spans_kernel, spans, spans_constexprs, num_warps=4),
    ]


def _tile_lists() -> KernelVariant:
    pointers = dict.fromkeys(("cu_seqlens_ptr", "seqused_k_ptr", "low_ptr", "high_ptr"), "*i32")
    integers = dict.fromkeys(("B", "low_bound", "high_bound"), "i32")
    constexprs = dict(LOW_ROWS=TILE_ROWS[0], HIGH_ROWS=TILE_ROWS[1], HAS_UNUSED=True, TILES=TILES, SEQUENCES=SEQUENCES)
    return KernelVariant("attention tile lists", tile_lists_kernel, pointers | integers, constexprs, num_warps=NUM_WARPS)


def _variant(
    kernel, part: str, problem: Problem, tile: Tile, constexprs: Mapping[str, Any], older_unit: str = ""
) -> KernelVariant:
    """What one launch of this kernel compiles. part: the kernel's name in the table."""
    dtype = DTYPE_NAMES[problem.dtype]
    constexprs = {
        "HEAD_DIM": problem.head_dim,
        "BLOCK_D": triton.next_power_of_2(problem.head_dim),
        "HAS_DROPOUT": problem.has_dropout,
        "PRECISION": problem.precision,
        **constexprs,
    }
    name = f"attention {part} D={problem.head_dim} {dtype if dtype != 'fp32' else problem.precision}"
    name += f" {tile.BLOCK_M}x{tile.BLOCK_N}" + " causal" * constexprs["CAUSAL"] + " dropout" * problem.has_dropout
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
        divisible=tuple(argument for argument in kernel.arg_names if argument.startswith("stride_")),
        targets=(problem.target,),
    )
