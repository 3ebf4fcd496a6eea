"""Weights rounded so that a product changes least on given inputs: GPTQ (Frantar et al. 2023), to fp8.

Columns are rounded one after the other, those of the largest inputs first, and what one loses is made up for by those that
are still to come, as far as their inputs go together.
"""

import torch
from torch import Tensor

from fastbert.kernels import fp8
from fastbert.kernels.fp8_format import E4M3, LARGEST

DAMPING = 0.01  # of the mean second moment, added to each: inputs that were never seen weigh something
BLOCK = 128  # columns whose losses are passed on together


class Moments:
    """Sums x.T @ x over the rows of a product's inputs, float64 (K, K)."""

    def __init__(self) -> None:
        self.sum: Tensor | None = None
        self.rows = 0

    def add(self, x: Tensor) -> None:
        """x: (M, K)."""
        product = (x.T @ x).double()
        self.sum = product if self.sum is None else self.sum + product
        self.rows += x.shape[0]


def round_weight(weight: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
    """weight, float32 (N, K), in fp8 with a scale per row, as `fp8.quantize` gives them: (N, K) and (N, 1).

    Raises ValueError where the moments hold no rows or are not finite.
    """
    if moments.sum is None or not moments.rows or not bool(moments.sum.isfinite().all()):
        raise ValueError(f"expected finite inputs of the product, got {moments.rows} rows, some of them not finite")
    largest = weight.abs().amax(1, keepdim=True).clamp(min=fp8.SMALLEST)
    inverse, step = (LARGEST / largest).double(), (largest / LARGEST).double()
    order = moments.sum.diagonal().argsort(descending=True, stable=True)
    left = weight.double()[:, order]
    factor = _inverse_factor(moments.sum[order][:, order])
    rounded = torch.empty_like(weight, dtype=E4M3)
    for first in range(0, left.shape[1], BLOCK):
        block = slice(first, min(first + BLOCK, left.shape[1]))
        losses = torch.empty_like(left[:, block])
        for column in range(block.start, block.stop):
            wanted = left[:, column]
            q = (wanted[:, None] * inverse).clamp(-LARGEST, LARGEST).float().to(E4M3)
            loss = (wanted - (q.double() * step)[:, 0]) / factor[column, column]
            left[:, column : block.stop] -= loss[:, None] * factor[column, column : block.stop]
            losses[:, column - first] = loss
            rounded[:, order[column]] = q[:, 0]
        left[:, block.stop :] -= losses @ factor[block, block.stop :]
    return rounded, largest / LARGEST


def _inverse_factor(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the damped moments' inverse."""
    damped = moments + torch.eye(len(moments), dtype=moments.dtype, device=moments.device) * (
        DAMPING * moments.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    )
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
