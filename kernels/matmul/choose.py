"""Who computes a matrix product: the Triton kernels or the library that PyTorch calls. Imports no Triton.

What was measured on this device decides first (table.py, written by `fastbert tune`), together with the tile that won. Other
products follow rules, which are data, read in order: the first that applies decides. Either way the reason is a sentence that
`explain` can print. Nothing is timed or searched while a model runs, so a product of one shape is computed the same way for
the life of a process. The environment variable `FASTBERT_GEMM` or the `use_gemm` context forces one side for every product
that is not empty.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

import torch
from torch import Tensor

from ..batch_invariance import is_batch_invariant
from ..device import architecture, dot_precision, index_of, is_gpu
from .config import GemmConfig, unsupported_reason
from .keys import GEMM_PRODUCTS, OPERATIONS, Entry, Measured, Side, Timed, row_bucket
from .operands import DIVISIBILITY, have_whole_vectors
from .table import measured_on

Gemm = Literal["auto", "triton", "library"]


@dataclass(frozen=True)
class GemmChoice:
    """side: who computes. reason: why, as one clause. config: the measured tile; where None, `GemmConfig.for_shape` decides."""

    side: Side
    reason: str
    config: GemmConfig | None = None


@dataclass(frozen=True)
class Rule:
    """operations, dtypes, architectures: what it applies to, everything where empty.

    precision: how float32 is multiplied. max_rows: up to so many rows M.
    """

    side: Side
    reason: str
    operations: tuple[str, ...] = ()
    dtypes: tuple[torch.dtype, ...] = ()
    precision: Literal["ieee", "tf32"] | None = None
    architectures: tuple[str, ...] = ()
    max_rows: int | None = None

    def applies(self, operation: str, M: int, dtype: torch.dtype, precision: str, arch: str) -> bool:
        return (
            (not self.operations or operation in self.operations)
            and (not self.dtypes or dtype in self.dtypes)
            and (self.precision is None or precision == self.precision)
            and (not self.architectures or arch in self.architectures)
            and (self.max_rows is None or M <= self.max_rows)
        )


# None of these has been timed: each follows from the bytes moved and the operations computed. Measured ones go in front.
RULES = (
    Rule(
        "library",
        "float32 without tf32 has no tensor cores, where a fused epilogue would save little; not yet timed",
        dtypes=(torch.float32,),
        precision="ieee",
    ),
    Rule(
        "triton",
        "the epilogue applies the activation, which saves a pass over the inner state; not yet timed",
        operations=("linear_activation",),
    ),
    Rule(
        "triton",
        "the epilogue applies the derivative and sums the bias gradient, which saves two passes over the inner state; "
        "not yet timed",
        operations=("dgrad_activation",),
    ),
    Rule("library", "nothing is left to fuse into a plain product; not yet timed"),
)


def _checked(name: str, source: str) -> Gemm:
    if name not in ("auto", "triton", "library"):
        raise ValueError(f"{source} must be 'auto', 'triton' or 'library', got {name!r}")
    return cast(Gemm, name)


def _forced_choice(name: Gemm) -> GemmChoice | None:
    return None if name == "auto" else GemmChoice(name, "forced")


_forced: GemmChoice | None = _forced_choice(
    _checked(os.environ.get("FASTBERT_GEMM", "auto"), "the environment variable FASTBERT_GEMM")
)
_EMPTY = GemmChoice("library", "the product is empty")
_INVARIANT = GemmChoice("triton", "batch-invariant mode: the library chooses its algorithm by the number of rows")
_INTERPRETED = GemmChoice("triton", "the interpreter runs to exercise the kernels")


@contextmanager
def use_gemm(name: Gemm) -> Iterator[None]:
    """Forces one side for every matrix product inside the `with` block, for the whole process.

    name: 'auto', 'triton' or 'library'. It matters only where the kernels run at all (see `use_backend`).
    Raises ValueError for another name.
    """
    with use_choice(_forced_choice(_checked(name, "the side of matrix products"))):
        yield


@contextmanager
def use_choice(choice: GemmChoice | None) -> Iterator[None]:
    """Like `use_gemm`, with the tile too; None for the usual choice. For measuring: every product inside takes this tile.

    A product that cannot raises ValueError.
    """
    global _forced
    before, _forced = _forced, choice
    try:
        yield
    finally:
        _forced = before


def select_gemm(
    operation: str,
    M: int,
    N: int,
    K: int,
    dtype: torch.dtype,
    device: torch.device,
    x: Tensor | None = None,
    weights: Sequence[Tensor] = (),
) -> GemmChoice:
    """Who computes a product of a linear layer with weight (N, K) on M rows, on which tile, and why.

    operation: a key of OPERATIONS. device: need not exist on this machine. x, weights: the operands, dy in place of x in a
    backward, and x in place of the weights of a wgrad; a tile that cannot read them, or only element by element, is left out
    of the choice.
    Raises ValueError for another operation, RuntimeError where the library is forced in batch-invariant mode, TableError or
    OSError where a table that the user named cannot be used.
    """
    if operation not in OPERATIONS:
        raise ValueError(f"expected an operation among {', '.join(OPERATIONS)}, got {operation!r}")
    if M * N * K == 0:
        return _EMPTY
    if is_batch_invariant():
        if _forced is not None and _forced.side == "library":
            raise RuntimeError("matrix products are forced to the library, which chooses by rows: not in batch-invariant mode")
        return _INVARIANT
    if _forced is not None:
        return _forced
    if not is_gpu(device):
        return _INTERPRETED
    arch = architecture(device)
    choice = _select(operation, M, N, K, dtype, dot_precision(dtype, arch), arch, _measured(device, arch))
    if choice.config is None or x is None or (reason := unsupported_reason(choice.config, x, weights)) is None:
        return choice
    return GemmChoice(choice.side, f"{choice.reason}; not this tile here: {reason}")


@lru_cache(maxsize=4096)
def _select(
    operation: str, M: int, N: int, K: int, dtype: torch.dtype, precision: str, arch: str, measured: Measured | None
) -> GemmChoice:
    if measured is not None:
        rows = row_bucket(M)
        entry = measured.entries.get((operation, dtype, precision, N, K, rows))
        if entry is not None:
            tile = entry.winner.config
            config = None if tile is None else GemmConfig.named(GEMM_PRODUCTS[operation], tile)
            words = _in_words(entry, rows, measured.device)
            if config is not None and not config.suits(N, K):  # a table from elsewhere: `fastbert tune` does not time it
                return GemmChoice(entry.winner.side, f"{words}; not this tile: {_element_by_element(N, K)}")
            return GemmChoice(entry.winner.side, words, config)
    error = f"; {measured.table_error}" if measured is not None and measured.table_error else ""
    if not have_whole_vectors(N, K):
        return GemmChoice("library", _element_by_element(N, K) + error)
    rule = next(rule for rule in RULES if rule.applies(operation, M, dtype, precision, arch))  # the last one always does
    return GemmChoice(rule.side, rule.reason + error)


def _element_by_element(N: int, K: int) -> str:
    return f"Triton would load element by element: N = {N} and K = {K} are not both multiples of {DIVISIBILITY}"


def _measured(device: torch.device, arch: str) -> Measured | None:
    """What was measured on this device; None where this machine does not have it."""
    if device.type != "cuda":
        return None
    return measured_on(index_of(device), arch)


def _in_words(entry: Entry, rows: int, device: str) -> str:
    winner, other = entry.winner, entry.runner_up
    tile = f" with tile {winner.config}" if winner.config else ""
    words = f"measured on {device} at {rows} rows: {_microseconds(winner)}{tile}"
    if other is None:
        return f"{words}; the other side gave no right result"
    against = "the library's" if other.side == "library" else f"Triton's (tile {other.config})"
    return f"{words} against {against} {_microseconds(other)}"


def _microseconds(timed: Timed) -> str:
    return f"{timed.microseconds:.1f} us" if timed.microseconds < 100 else f"{timed.microseconds:.0f} us"
