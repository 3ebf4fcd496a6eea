"""The tiles of the three matrix products, and which one a shape takes. Imports no Triton.

A kernel has one of several structures. `pointers` (pointers.py) serves everything on every target, and its forward may be
split along K (split_k.py). `tma`, `tma_persistent` and `tma_flattened` (tma.py) are the forward for 16-bit tensors on Hopper
and later. Nothing was timed, so `GemmConfig.for_shape` takes pointers, unsplit; the rest are candidates for `fastbert tune`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from ..batch_invariance import is_batch_invariant
from ..device import architecture, cdiv, dot_precision, has_wide_matrix_unit, is_amd, num_programs
from .operands import have_whole_vectors

Structure = Literal["pointers", "tma", "tma_persistent", "tma_flattened"]
PRODUCTS = ("fwd", "dgrad", "dgrad_activation", "wgrad")


@dataclass(frozen=True)
class GemmConfig:
    """An output tile of rows x columns, summed `inner` elements at a time.

    min_per_multiprocessor: how many tiles each multiprocessor needs before `for_shape` takes this size. max_registers: of a
    thread, a limit for the compiler where that costs no spill (NVIDIA only). splits: parts into which the sum of a product is
    cut, each in its own float32 slot; None: a forward is not split, a wgrad as `wgrad_splits` says. programs: how many share
    a multiprocessor, in the persistent structures.

    Compiled for sm_90 with bf16: 128x256 has 173 to 218 registers by pointers, 154 to 192 by descriptors, up to 255
    flattened; 128x128 at most 128 (two programs share a multiprocessor and overlap one's epilogue with the other's
    products); no spill; not yet timed. A 128x256 tile reads a quarter less of L2 per product than a 128x128 one.
    """

    rows: int
    columns: int
    inner: int
    num_warps: int
    num_stages: int
    min_per_multiprocessor: int = 1
    max_registers: int | None = None
    structure: Structure = "pointers"
    splits: int | None = None
    programs: int = 1

    @classmethod
    def for_shape(
        cls, product: str, rows: int, columns: int, dtype: torch.dtype, device: torch.device, whole_vectors: bool = True
    ) -> "GemmConfig":
        """The largest tile that still gives every multiprocessor work; in batch-invariant mode the second smallest.

        whole_vectors: as `have_whole_vectors` says; where not, the smallest tile, the only one that then spills no register.
        """
        arch = architecture(device)
        *larger, smallest = configs(product, dtype, dot_precision(dtype, arch), arch)
        if not whole_vectors:
            return smallest
        if is_batch_invariant():
            return larger[-1] if larger else smallest
        multiprocessors = num_programs(device, 1)
        for config in larger:
            if config.num_tiles(rows, columns) >= config.min_per_multiprocessor * multiprocessors:
                return config
        return smallest

    @classmethod
    def named(cls, product: str, name: str) -> "GemmConfig":
        """The candidate of a product with this name, whichever architecture and dtype it ships for.

        Raises ValueError for another product or name.
        """
        known = _by_name(product)
        if name not in known:
            raise ValueError(f"expected a tile of {product} among {', '.join(map(repr, known))}, got {name!r}")
        return known[name]

    def suits(self, N: int, K: int) -> bool:
        """Whether it spills no more than a value or two with weights (N, K) (compiled for sm_90 and sm_80).

        Read element by element, all but the smallest tile do spill more. Descriptors read whole tiles, or nothing
        (`unsupported_reason`).
        """
        is_small = self.rows * self.columns <= SMALL.rows * SMALL.columns and self.splits is None
        return is_small or self.structure != "pointers" or have_whole_vectors(N, K)

    @property
    def name(self) -> str:
        """Such as 'tma_persistent 128x256x64 w8 s3': structure, tile, warps, stages; then register limit and splits if any."""
        words = [self.structure, f"{self.rows}x{self.columns}x{self.inner}", f"w{self.num_warps}", f"s{self.num_stages}"]
        if self.max_registers is not None:
            words.append(f"r{self.max_registers}")
        if self.splits is not None:
            words.append(f"k{self.splits}")
        return " ".join(words)

    def num_tiles(self, rows: int, columns: int) -> int:
        return cdiv(rows, self.rows) * cdiv(columns, self.columns)

    def splits_of(self, K: int) -> tuple[int, int]:
        """(parts into which a forward's sum over K is cut, elements of each but the last): whole steps, whatever M is."""
        per_split = cdiv(cdiv(K, self.splits or 1), self.inner) * self.inner
        return cdiv(K, per_split), per_split

    @property
    def launch(self) -> dict[str, int]:
        """Options of a launch."""
        options = dict(num_warps=self.num_warps, num_stages=self.num_stages)
        return options if self.max_registers is None else options | dict(maxnreg=self.max_registers)


WIDE = GemmConfig(128, 256, 64, num_warps=8, num_stages=3, min_per_multiprocessor=2)
LARGE = GemmConfig(128, 128, 64, num_warps=8, num_stages=3)
LARGE_ACTIVATION = replace(LARGE, max_registers=128)  # its epilogue would take 143, and one program a multiprocessor
SMALL = GemmConfig(64, 64, 64, num_warps=4, num_stages=4)
TF32_LARGE = GemmConfig(128, 128, 32, num_warps=8, num_stages=3)
TF32_SMALL = GemmConfig(64, 64, 32, num_warps=8, num_stages=3)
IEEE = GemmConfig(64, 64, 16, num_warps=8, num_stages=3)
IEEE_WGRAD = GemmConfig(32, 64, 16, num_warps=4, num_stages=3)  # not yet tried: a larger one
TMA_WIDE = replace(WIDE, structure="tma_persistent", min_per_multiprocessor=1)  # 176 KiB of shared memory
TMA_LARGE = replace(LARGE, structure="tma_persistent", programs=2)  # 112 KiB, at most 128 registers
TMA = (
    TMA_WIDE,
    replace(TMA_WIDE, structure="tma_flattened"),
    TMA_LARGE,
    replace(TMA_LARGE, structure="tma_flattened"),
    replace(LARGE, structure="tma"),
)
# For few rows, which make few tiles: several programs share the reading of the weights, each a part of K.
SPLIT = tuple(GemmConfig(64, 64, 128, num_warps=4, num_stages=4, splits=splits) for splits in (2, 4, 8))
GROUP_ROWS = 8  # rows of tiles that are walked column by column, so that their operands stay in L2
MAX_SPLITS, MIN_ROWS_PER_SPLIT = 16, 128


def configs(product: str, dtype: torch.dtype, precision: str, arch: str) -> tuple[GemmConfig, ...]:
    """The tiles that `for_shape` chooses from for a product of PRODUCTS, largest first."""
    if dtype != torch.float32:
        wide = (WIDE,) if has_wide_matrix_unit(arch) else ()
        tiles = (LARGE_ACTIVATION, SMALL) if product == "dgrad_activation" else (*wide, LARGE, SMALL)
    elif precision == "tf32":
        tiles = (TF32_LARGE, TF32_SMALL)
    else:
        tiles = (IEEE_WGRAD if product == "wgrad" else IEEE,)
    if is_amd(arch):  # 64 KiB of shared memory, and registers hold the stage in flight
        tiles = tuple(replace(tile, num_stages=2, max_registers=None) for tile in tiles)
    return tiles


def candidates(product: str, dtype: torch.dtype, precision: str, arch: str) -> tuple[GemmConfig, ...]:
    """Every tile that ships for a product of PRODUCTS: those of `configs` first, then those that only a measurement selects.

    precision, arch: as device.dot_precision and device.architecture give them. Raises ValueError for another product.
    """
    if product not in PRODUCTS:
        raise ValueError(f"expected a product among {', '.join(PRODUCTS)}, got {product!r}")
    tiles = configs(product, dtype, precision, arch)
    if product == "fwd" and dtype != torch.float32:
        tiles += TMA if has_wide_matrix_unit(arch) else ()
        tiles += SPLIT if arch == "sm_80" or has_wide_matrix_unit(arch) else ()
    return tiles


@cache
def _by_name(product: str) -> dict[str, GemmConfig]:
    kinds = ((torch.bfloat16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee"))
    archs = ("sm_90", "sm_80", "gfx942")
    return {config.name: config for arch in archs for kind in kinds for config in candidates(product, *kind, arch)}


def unsupported_reason(config: GemmConfig, x: Tensor, weights: Sequence[Tensor]) -> str | None:
    """Why a forward on these tensors cannot take this config, as one clause; None where it can, if `readable` copies some."""
    if config.structure == "pointers":
        return None
    if config.splits is not None:
        return "only pointers have a sum over K that is split"
    if x.dtype not in (torch.bfloat16, torch.float16):
        return f"tiles copied by the hardware are for bfloat16 and float16, not {x.dtype}"
    if not has_wide_matrix_unit(arch := architecture(x.device)):
        return f"{arch} has no hardware that copies tiles"
    N, K = weights[0].shape
    if N % 8:
        return f"rows of the result must be a multiple of 16 bytes, and N = {N} is no multiple of 8"
    if len(weights) == 3 and N % config.columns:
        return f"each of three weights must end with a tile, and N = {N} is no multiple of {config.columns}"
    for name, tensor in (("x", x), *(("a weight", weight) for weight in weights)):
        is_copied = have_whole_vectors(N, K)
        if tensor.stride(1) != 1 or not (is_copied or (tensor.stride(0) % 8 == 0 and tensor.data_ptr() % 16 == 0)):
            return f"{name} must start at a multiple of 16 bytes and have contiguous rows a multiple of 16 bytes apart"
    return None


def wgrad_splits(config: GemmConfig, M: int, N: int, K: int, device: torch.device) -> int:
    """Into how many parts a wgrad's sum over M is split: the fewest that keep the last wave of programs 94% full."""
    multiprocessors = num_programs(device, 1)
    tiles = config.num_tiles(N, K)
    best, best_fill = 1, 0.0
    for splits in range(1, max(1, min(MAX_SPLITS, M // MIN_ROWS_PER_SPLIT)) + 1):
        fill = tiles * splits / (cdiv(tiles * splits, multiprocessors) * multiprocessors)
        if fill > best_fill:
            best, best_fill = splits, fill
        if fill >= 0.94:
            break
    return best
