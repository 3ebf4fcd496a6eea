"""Times the library and every tile of the Triton kernels on one matrix product, after checking each against float64."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastbert.kernels.matmul.choose import GemmChoice, use_choice
from fastbert.kernels.matmul.config import GemmConfig
from fastbert.kernels.matmul.table import Entry, Timed
from fastbert.kernels.specs.accuracy import OUT_FACTOR, compare_with_float64
from fastbert.utils.timing import Clock, failure_reason, take_turns

if TYPE_CHECKING:
    from fastbert.kernels.specs.products import Product

WARM_UP = 3


@dataclass(frozen=True)
class Contender:
    """One way to compute a product; a call does it once. config: the tile, None for the library."""

    product: "Product"
    operands: dict[str, Tensor]
    config: GemmConfig | None

    @property
    def name(self) -> str:
        return "library" if self.config is None else self.config.name

    def timed(self, microseconds: float) -> Timed:
        """This contender's time as an entry of the table."""
        if self.config is None:
            return Timed("library", None, microseconds)
        return Timed("triton", self.config.name, microseconds)

    def __call__(self) -> tuple[Tensor, ...]:
        with use_choice(GemmChoice("library" if self.config is None else "triton", "being measured", self.config)):
            return self.product.run(self.operands)


@dataclass(frozen=True)
class Result:
    """entry: None where no contender ran and was right. excluded: who was not timed to the end, and why."""

    product: "Product"
    rows: int
    entry: Entry | None
    excluded: tuple[tuple[str, str], ...]


def measure_product(
    product: "Product", rows: int, dtype: torch.dtype, device: torch.device, clock: Clock, rounds: int
) -> Result:
    """Checks and times the library and every tile that can compute this product.

    clock: seconds of one call. rounds: how often each contender is timed; the medians are compared.
    """
    operands = product.operands(rows, dtype, device, torch.Generator(device).manual_seed(0))
    contenders = [Contender(product, operands, config) for config in (None, *product.tiles(operands))]
    with torch.no_grad(), torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        ready, excluded = _check(product, operands, contenders, rows)
        turns = take_turns({contender.name: contender for contender in ready}, clock, rounds=rounds, warm_up=WARM_UP)
    excluded |= {name: failure_reason(error) for name, error in turns.failures.items()}
    best: dict[str, Timed] = {}
    for contender in ready:
        if contender.name in excluded:
            continue
        timed = contender.timed(round(turns.timings[contender.name].median * 1e6, 3))
        if timed.side not in best or timed.microseconds < best[timed.side].microseconds:
            best[timed.side] = timed
    order = sorted(best.values(), key=lambda timed: timed.microseconds)  # the library is first, and stays so in a draw
    return Result(product, rows, Entry(*order) if order else None, tuple(excluded.items()))


def _check(
    product: "Product", operands: dict[str, Tensor], contenders: Sequence[Contender], rows: int
) -> tuple[list[Contender], dict[str, str]]:
    """(the contenders that ran and were right, why each of the others is excluded)."""
    exact = product.reference({name: operand.double() for name, operand in operands.items()})
    same_dtype = product.reference(operands)
    ready: list[Contender] = []
    excluded: dict[str, str] = {}
    for contender in contenders:
        try:
            with _fresh_memory_is_nan():
                results = contender()
        except Exception as error:  # one that does not compile or launch does not end the run of the others
            excluded[contender.name] = failure_reason(error)
            continue
        inaccuracy = _inaccuracy(results, same_dtype, exact, rows)
        if inaccuracy is None:
            ready.append(contender)
        else:
            excluded[contender.name] = f"wrong: {inaccuracy}"
    return ready, excluded


def _inaccuracy(results: Sequence[Tensor], same_dtype: Sequence[Tensor], exact: Sequence[Tensor], rows: int) -> str | None:
    """The first output that errs more than the rule of accuracy.py allows, or None."""
    for i, (result, plain, right) in enumerate(zip(results, same_dtype, exact, strict=True)):
        is_sum = right.dim() == 1
        name = "sum over the rows" if is_sum else f"output {i}"
        accuracy = compare_with_float64(name, result, plain, right, OUT_FACTOR, summed_rows=rows if is_sum else 0)
        if not accuracy.passed:
            return str(accuracy)
    return None


@contextmanager
def _fresh_memory_is_nan() -> Iterator[None]:
    """So that a missing store shows, although the last contender left the right numbers in the same memory."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # which fills what torch.empty returns
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
