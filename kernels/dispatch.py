"""Which side computes a matrix product: the Triton kernels or the library that PyTorch calls. Imports no Triton.

The rules are data, read in order; the first that fits decides, and its reason is a sentence that `explain` can print.
The environment variable `FASTBERT_GEMM` or the `use_gemm` context forces one side of every product that is not empty.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

from .invariance import is_batch_invariant

Gemm = Literal["auto", "triton", "library"]

OPERATIONS = {
    "linear": "x @ weight.T, with a bias or without",
    "linear_activation": "activation(x @ weight.T + bias)",
    "qkv_linear": "x @ weight.T of three weights side by side, with biases or without",
    "dgrad": "dy @ weight",
    "dgrad_activation": "(dy @ weight) * activation'(u), with its sum over the rows",
    "qkv_dgrad": "dy @ weight summed over three weights",
    "wgrad": "dy.T @ x, with the sum of dy over the rows or without",
}


@dataclass(frozen=True)
class Rule:
    """operations, dtypes, architectures: what it applies to, everything where empty.

    precision: how float32 is multiplied. max_rows: up to so many rows M.
    """

    side: Literal["triton", "library"]
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


_choice: Gemm = _checked(os.environ.get("FASTBERT_GEMM", "auto"), "the environment variable FASTBERT_GEMM")


@contextmanager
def use_gemm(name: Gemm) -> Iterator[None]:
    """Forces the side of every matrix product inside the `with` block, for the whole process.

    name: 'auto', 'triton' or 'library'. It matters only where the kernels run at all (see `use_backend`).
    Raises ValueError for another name.
    """
    global _choice
    before, _choice = _choice, _checked(name, "the side of matrix products")
    try:
        yield
    finally:
        _choice = before


def choose(
    operation: str, M: int, N: int, K: int, dtype: torch.dtype, device: torch.device
) -> tuple[Literal["triton", "library"], str]:
    """The side that computes a product of a linear layer with weight (N, K) on M rows, and why, as one clause.

    operation: a key of OPERATIONS. device: need not exist on this machine.
    Raises ValueError for another operation, RuntimeError where the library is forced in batch-invariant mode.
    """
    if operation not in OPERATIONS:
        raise ValueError(f"expected an operation among {', '.join(OPERATIONS)}, got {operation!r}")
    if M * N * K == 0:
        return "library", "the product is empty"
    if is_batch_invariant():
        if _choice == "library":
            raise RuntimeError("matrix products are forced to the library, which chooses by rows: not in batch-invariant mode")
        return "triton", "batch-invariant mode: the library chooses its algorithm by the number of rows"
    if _choice != "auto":
        return _choice, "forced"
    if device.type == "cpu":
        return "triton", "the interpreter runs to exercise the kernels"
    if N % DIVISIBILITY or K % DIVISIBILITY:
        return "library", f"Triton would load element by element: N = {N} and K = {K} are not both multiples of {DIVISIBILITY}"
    arch = architecture(device)
    for rule in RULES:
        if (
            (not rule.operations or operation in rule.operations)
            and (not rule.dtypes or dtype in rule.dtypes)
            and (rule.precision is None or dot_precision(dtype, arch) == rule.precision)
            and (not rule.architectures or arch in rule.architectures)
            and (rule.max_rows is None or M <= rule.max_rows)
        ):
            return rule.side, rule.reason
    raise AssertionError("the last rule fits everything")


def dot_precision(dtype: torch.dtype, arch: str) -> Literal["ieee", "tf32"]:
    """How a kernel multiplies: float32 is rounded to tf32 only where PyTorch allows it and the hardware has it."""
    if dtype != torch.float32 or not (arch.startswith("sm_") or arch == "gfx942"):
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def architecture(device: torch.device) -> str:
    """'sm_90', 'gfx942' and the like; 'cpu'; 'unknown' for a GPU that this machine does not have."""
    if device.type == "cpu":
        return "cpu"
    if device.type != "cuda" or not torch.cuda.is_available():
        return "unknown"
    return _architecture(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _architecture(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"
