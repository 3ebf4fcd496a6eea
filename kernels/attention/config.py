"""Tile sizes of the attention kernels per architecture. Imports no Triton."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..device import architecture, dot_precision, has_wide_matrix_unit, is_amd, is_nvidia
from .schedule import PACK_ROWS


@dataclass(frozen=True)
class Problem:
    """What the choice of tiles depends on.

    precision: of float32 products, 'ieee' or 'tf32'. target: an architecture as `device.architecture` names it.
    """

    max_seqlen: int
    head_dim: int
    dtype: torch.dtype
    precision: str
    has_dropout: bool
    causal: bool
    target: str

    @classmethod
    def of(cls, qkv: Tensor, max_seqlen: int, dropout_p: float, causal: bool) -> "Problem":
        arch = architecture(qkv.device)
        return cls(max_seqlen, qkv.shape[-1], qkv.dtype, dot_precision(qkv.dtype, arch), dropout_p > 0, causal, arch)

    @property
    def is_wide(self) -> bool:
        return self.head_dim > 64

    @property
    def is_float32(self) -> bool:
        return self.dtype == torch.float32

    @property
    def is_exact(self) -> bool:
        """Whether products are float32 without tensor cores. AMD's matrix cores multiply float32 exactly."""
        return self.is_float32 and self.precision == "ieee" and is_nvidia(self.target)

    @property
    def has_free_registers(self) -> bool:
        """Whether products read operands from shared memory (wgmma, tcgen05), which leaves registers free."""
        return has_wide_matrix_unit(self.target)

    @property
    def is_crowded(self) -> bool:
        """Whether operands take registers that are scarce (mma.sync of NVIDIA before Hopper)."""
        return not (self.has_free_registers or is_amd(self.target))


@dataclass(frozen=True)
class Tile:
    """BLOCK_M query rows by BLOCK_N keys in one program. num_stages: depth of the loop's asynchronous loads."""

    BLOCK_M: int
    BLOCK_N: int
    num_warps: int = 4
    num_stages: int = 2

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}

    def capped_for_causal(self, causal: bool) -> "Tile":
        """With at most BLOCK_N rows where causal, so that the diagonal crosses only the last block of keys."""
        return replace(self, BLOCK_M=min(self.BLOCK_M, self.BLOCK_N)) if causal else self


# Float32 products without tensor cores are unrolled over head_dim with both operands in registers: larger tiles spill by the
# kilobyte.
EXACT_TILE = Tile(32, 32, num_warps=8)
EXACT_WIDE_TILE = Tile(8, 32, num_warps=8)  # of the forward and of dq above head_dim 64
PACKED_TILE = Tile(PACK_ROWS, PACK_ROWS)
LOG2_E = 1.4426950408889634  # the kernels exponentiate in base 2


@dataclass(frozen=True)
class ForwardConfig:
    """ONE_BLOCK: all keys of every sequence fit one block, so the kernel has no loop. short: the tile of packed sequences.

    Registers, compiled for sm_90 at head_dim 64 in bf16, without / with dropout, in parentheses the thread blocks that then fit
    a multiprocessor; no spill, not yet timed:
      short tile          74 (6)
      one block, 64x128   127 / 112 (4)
      loop, 64x64         106 (4) / 132 (3)
      loop, 64x128        167 (3), without dropout only; a fifth fewer instructions per score than 64x64
    Where a tile spills (bytes) and what is taken for it (registers, programs to a multiprocessor):
      sm_80, one block above 64, causal                4 warps: 32          8 warps: 112 (2), with dropout 125 (2)
      sm_80, loop above 64, with dropout               4 warps: 8           8 warps: 187 (1)
      sm_80, tf32 40 to 64, without dropout            32x64: 16            without asynchronous copies: 132 (3)
      sm_80, tf32 above 64, without dropout            32x32, 8 warps: 24   4 warps: 142 (3); with dropout those spill 16
      sm_90, tf32 above 64, causal                     32x32, 8 warps: 8    4 warps: 160 (3)
      exact above 64                                   32x32: 16            8x32: 64 (4); 16x32 spills with 4 warps and with 8
      exact, 24 and 32 with dropout                    32x32: 8             16x32: 80 (3)
    """

    tile: Tile
    ONE_BLOCK: bool
    short: Tile | None = PACKED_TILE

    @classmethod
    def choose(cls, problem: Problem) -> "ForwardConfig":
        if problem.is_exact:
            tile = replace(EXACT_TILE, BLOCK_M=16) if problem.has_dropout and 16 < problem.head_dim <= 32 else EXACT_TILE
            return cls(EXACT_WIDE_TILE if problem.is_wide else tile, ONE_BLOCK=False, short=None)
        if problem.is_float32 and problem.is_wide:
            if problem.has_free_registers and not problem.causal:
                return cls(Tile(64, 32, num_warps=8), ONE_BLOCK=False, short=None)
            many = is_amd(problem.target) or (problem.is_crowded and problem.has_dropout)
            return cls(Tile(32, 32, num_warps=8 if many else 4), ONE_BLOCK=False, short=None)
        if problem.is_float32 and problem.is_crowded:
            spills = problem.head_dim > 32 and not problem.has_dropout
            return cls(Tile(32, 64, num_stages=1 if spills else 2), ONE_BLOCK=False)
        is_tight = problem.is_crowded and problem.is_wide
        if problem.max_seqlen <= 128:
            return cls(Tile(64, 128, num_warps=8 if is_tight and problem.causal else 4), ONE_BLOCK=True)
        is_long = problem.max_seqlen >= 256 and problem.target in ("sm_90", "cpu")
        if is_long and not (problem.is_float32 or problem.is_wide or problem.has_dropout):
            return cls(Tile(64, 128), ONE_BLOCK=False)
        if is_tight and problem.has_dropout:
            return cls(Tile(64, 64, num_warps=8), ONE_BLOCK=False)
        return cls(Tile(64, 64, num_stages=3 if problem.head_dim <= 32 and problem.target == "sm_80" else 2), ONE_BLOCK=False)


@dataclass(frozen=True)
class BackwardConfig:
    """whole: tiles that hold a whole sequence, smallest first, BLOCK_M = BLOCK_N. dq, dkdv: tiles for longer sequences.

    short: the tile of packed sequences, or None where they are not packed.
    Registers, compiled for sm_90 at head_dim 64 in bf16, without / with dropout; no spill, not yet timed:
      whole, 64 rows    150
      short             152 / 168
      whole, 128 rows   177 / 250 (one thread block per multiprocessor, but it moves 7 tensors where dq and dkdv move 12)
      dq                122 / 154
      dkdv              228 at 64 rows / 210 at 32 rows
    Of the tiles that spill nothing, those with the fewest instructions per score, not yet timed. Where another
    one spills (bytes) and what is taken for it (registers, programs to a multiprocessor):
      sm_80, causal dkdv up to 64          64x64: 48       64x32: 137 (3)
      sm_80, causal dkdv above 64          32x64: 8        without asynchronous copies: 255 (2)
      sm_80, tf32 dq above 64              32x32: 8        without asynchronous copies: 163 (2); with dropout they stay: 198 (2)
      sm_80, tf32 dq 40 to 64 with dropout 32x64: 8        without asynchronous copies: 168 (3); up to 32 they stay: 192 (2)
      sm_90, causal tf32 dq above 64       32x32, 8 warps: 8   4 warps: 160 (3), with dropout 201 (2)
      exact dq above 64                    16x32: 112      8x32: 182 (1)
      exact dkdv at 16                     16x32, 8 warps: 8   4 warps: 80 (6)
    """

    whole: tuple[Tile, ...]
    dq: Tile
    dkdv: Tile
    short: Tile | None = None

    @classmethod
    def choose(cls, problem: Problem) -> "BackwardConfig":
        if problem.is_exact:
            dkdv = replace(EXACT_TILE, BLOCK_M=16, num_warps=4 if problem.head_dim <= 16 else 8)
            dq = replace(EXACT_TILE, BLOCK_M=16 if problem.head_dim > 32 else 32)
            return cls((), EXACT_WIDE_TILE if problem.is_wide else dq, dkdv)
        amd, has_room = is_amd(problem.target), problem.has_free_registers
        if problem.is_float32 and problem.is_wide:
            if amd:
                return cls((), Tile(32, 32, num_stages=1), Tile(16, 64))
            dq = Tile(32, 32, num_stages=2 if problem.has_dropout else 1)
            if has_room:
                dq = dq if problem.causal else Tile(64, 32, num_warps=8)
                return cls((), dq, Tile(32, 32, num_warps=8, num_stages=1))
            return cls((), dq, Tile(16, 32))
        if problem.is_float32:
            if has_room or amd:
                return cls((Tile(64, 64),), Tile(64, 64), Tile(32, 64), short=PACKED_TILE)
            return cls((), Tile(32, 64, num_stages=1 if problem.has_dropout and problem.head_dim > 32 else 2), Tile(16, 64))
        whole = [Tile(64, 64)]
        short = Tile(PACK_ROWS, PACK_ROWS, num_warps=8 if problem.is_wide and not amd else 4)
        if has_room and not problem.is_wide:
            whole.append(Tile(128, 128, num_warps=8))
        if problem.is_wide:
            if problem.is_crowded:
                whole = [Tile(64, 64, num_warps=8)]
            dq = Tile(64 if has_room or amd else 32, 64)
            if problem.has_dropout:
                return cls(tuple(whole), dq, Tile(16, 64), short)
            return cls(tuple(whole), dq, Tile(32, 64, num_stages=1 if problem.causal and problem.is_crowded else 2), short)
        if not problem.has_dropout:
            dkdv = Tile(64, 32) if problem.causal and problem.is_crowded else Tile(64, 64)
            return cls(tuple(whole), Tile(64, 64), dkdv, short)
        return cls(tuple(whole), Tile(64, 64), Tile(32, 64, num_stages=1 if problem.is_crowded else 2), short)

    def whole_tiles_for(self, max_seqlen: int) -> tuple[Tile, ...]:
        """The whole-sequence tiles worth a launch: only the smallest where some sequence is longer than all of them."""
        if not self.whole or max_seqlen > self.whole[-1].BLOCK_M:
            return self.whole[:1]
        return tuple(tile for i, tile in enumerate(self.whole) if not i or max_seqlen > self.whole[i - 1].BLOCK_M)
