"""Which side computes a matrix product: the Triton kernels or the library that PyTorch calls. Imports no Triton.

What was measured on this device decides first (tuned_table.py, written by `fastbert tune`), with the tile that won. Other
products go by rules, which are data, read in order: the first that fits decides. Either way the reason is a sentence that
`explain` can print. Nothing is timed or searched while a model runs, so a product of some shape goes the same way for the
life of a process. The environment variable `FASTBERT_GEMM` or the `use_gemm` context forces one side of every product that
is not empty.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

import torch

from ..batch_invariance import is_batch_invariant
from ..device import architecture, dot_precision, index_of, is_gpu

Gemm = Literal["auto", "triton", "library"]
Side = Literal["triton", "library"]

OPERATIONS = {
    "linear": "x @ weight.T, with a bias or without",
    "linear_activation": "activation(x @ weight.T + bias)",
    "qkv_linear": "x @ weight.T of three weights side by side, with biases or without",
    "dgrad": "dy @ weight",
    "dgrad_activation": "(dy @ weight) * activation'(u), with its sum over the rows",
    "qkv_dgrad": "dy @ weight summed over three weights",
    "wgrad": "dy.T @ x, with the sum of dy over the rows or without",
}
# The product of gemm.py whose tiles an operation takes.
GEMM_PRODUCTS = {
    "linear": "fwd",
    "linear_activation": "fwd",
    "qkv_linear": "fwd",
    "dgrad": "dgrad",
    "dgrad_activation": "dgrad_activation",
    "qkv_dgrad": "dgrad",
    "wgrad": "wgrad",
}
Key = tuple[str, torch.dtype, str, int, int, int]  # operation, dtype, precision, N, K, rows: M's power of two


@dataclass(frozen=True)
class Timed:
    """The fastest of one side. config: the name of its tile, None for the library."""

    side: Side
    config: str | None
    microseconds: float


@dataclass(frozen=True)
class Entry:
    """runner_up: the best of the side that lost, None where nothing of it ran and was right."""

    winner: Timed
    runner_up: Timed | None = None


@dataclass(frozen=True, eq=False)
class Measured:
    """What is known of one device. trouble: why a table that is there is not among the entries, or an empty text."""

    device: str
    entries: Mapping[Key, Entry]
    trouble: str = ""


@dataclass(frozen=True)
class Choice:
    """side: what computes. reason: why, as one clause. config: the name of the measured tile, None where gemm.py chooses."""

    side: Side
    reason: str
    config: str | None = None


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


# No entry has been timed: each starts from what is moved and computed. Measured entries go in front.
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
DIVISIBILITY = 16  # elements: what Triton must know of a row to load and store it 16 bytes at a time


def _checked(name: str, source: str) -> Gemm:
    if name not in ("auto", "triton", "library"):
        raise ValueError(f"{source} must be 'auto', 'triton' or 'library', got {name!r}")
    return name  # type: ignore[return-value]


def _as_choice(name: Gemm) -> Choice | None:
    return None if name == "auto" else Choice(name, "forced")


_forced: Choice | None = _as_choice(_checked(os.environ.get("FASTBERT_GEMM", "auto"), "the environment variable FASTBERT_GEMM"))
_EMPTY = Choice("library", "the product is empty")
_INVARIANT = Choice("triton", "batch-invariant mode: the library chooses its algorithm by the number of rows")
_INTERPRETED = Choice("triton", "the interpreter runs to exercise the kernels")


@contextmanager
def use_gemm(name: Gemm) -> Iterator[None]:
    """Forces the side of every matrix product inside the `with` block, for the whole process.

    name: 'auto', 'triton' or 'library'. It matters only where the kernels run at all (see `use_backend`).
    Raises ValueError for another name.
    """
    with use_choice(_as_choice(_checked(name, "the side of matrix products"))):
        yield


@contextmanager
def use_choice(choice: Choice | None) -> Iterator[None]:
    """Like `use_gemm`, with the tile too; None for the usual choice. For measuring: the tile must fit every product inside."""
    global _forced
    before, _forced = _forced, choice
    try:
        yield
    finally:
        _forced = before


def choose(operation: str, M: int, N: int, K: int, dtype: torch.dtype, device: torch.device) -> tuple[Side, str]:
    """The side and the reason of `decide`."""
    choice = decide(operation, M, N, K, dtype, device)
    return choice.side, choice.reason


def decide(operation: str, M: int, N: int, K: int, dtype: torch.dtype, device: torch.device) -> Choice:
    """What computes a product of a linear layer with weight (N, K) on M rows, and why.

    operation: a key of OPERATIONS. device: need not exist on this machine.
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
    return _decide(operation, M, N, K, dtype, dot_precision(dtype, arch), arch, _measured(device, arch))


@lru_cache(maxsize=4096)
def _decide(
    operation: str, M: int, N: int, K: int, dtype: torch.dtype, precision: str, arch: str, measured: Measured | None
) -> Choice:
    if measured is not None:
        rows = row_bucket(M)
        entry = measured.entries.get((operation, dtype, precision, N, K, rows))
        if entry is not None:
            return Choice(entry.winner.side, _in_words(entry, rows, measured.device), entry.winner.config)
    trouble = f"; {measured.trouble}" if measured is not None and measured.trouble else ""
    if N % DIVISIBILITY or K % DIVISIBILITY:
        why = f"Triton would load element by element: N = {N} and K = {K} are not both multiples of {DIVISIBILITY}"
        return Choice("library", why + trouble)
    for rule in RULES:
        if (
            (not rule.operations or operation in rule.operations)
            and (not rule.dtypes or dtype in rule.dtypes)
            and (rule.precision is None or precision == rule.precision)
            and (not rule.architectures or arch in rule.architectures)
            and (rule.max_rows is None or M <= rule.max_rows)
        ):
            return Choice(rule.side, rule.reason + trouble)
    raise AssertionError("the last rule fits everything")


def row_bucket(M: int) -> int:
    """The power of two that stands for M rows in a table: the nearest one by ratio."""
    return 1 << (((2 * M * M).bit_length() - 1) // 2)


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


def _measured(device: torch.device, arch: str) -> Measured | None:
    """What was measured on this device; None where this machine does not have it."""
    if device.type != "cuda":
        return None
    return measured_on(index_of(device), arch)


@cache
def measured_on(index: int, arch: str) -> Measured | None:
    """What the tables say of one GPU, read once. See tuned_table.load, and what it raises."""
    if not torch.cuda.is_available():
        return None
    from .table import Machine, load

    return load(Machine.of(torch.device("cuda", index), arch))


def forget_measured() -> None:
    """Reads the tables again at the next product, since a file has changed."""
    measured_on.cache_clear()
