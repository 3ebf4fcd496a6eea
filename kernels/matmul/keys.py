"""The matrix products that are chosen and measured: their names, their key in a measured table, and what was measured.

Imports no Triton.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

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
# The product of config.PRODUCTS whose tiles an operation takes.
GEMM_PRODUCTS = {
    "linear": "fwd",
    "linear_activation": "fwd",
    "qkv_linear": "fwd",
    "dgrad": "dgrad",
    "dgrad_activation": "dgrad_activation",
    "qkv_dgrad": "dgrad",
    "wgrad": "wgrad",
}
Key = tuple[str, torch.dtype, str, int, int, int]  # operation, dtype, precision, N, K, rows: row_bucket(M)


@dataclass(frozen=True)
class Timed:
    """The fastest way of one side. config: the name of its tile, None for the library."""

    side: Side
    config: str | None
    microseconds: float


@dataclass(frozen=True)
class Entry:
    """What was measured for one key. runner_up: the best of the side that lost, None where none of it ran correctly."""

    winner: Timed
    runner_up: Timed | None = None


@dataclass(frozen=True, eq=False)
class Measured:
    """What is known about one device. table_error: why a table that exists was not read, or an empty text."""

    device: str
    entries: Mapping[Key, Entry]
    table_error: str = ""


def row_bucket(M: int) -> int:
    """The number of rows under which a table keeps M rows: the nearest power of two, by ratio."""
    return 1 << (((2 * M * M).bit_length() - 1) // 2)
