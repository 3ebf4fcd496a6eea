"""Weights rounded to fp8 so that a product changes least on given inputs: GPTQ (Frantar et al. 2023).

Columns are rounded one after the other, those of the largest inputs first; the error of each is compensated in the columns
that are not rounded yet, as far as their inputs are correlated.
"""

import torch
from torch import Tensor

from fastbert.kernels.fp8_format import E4M3, LARGEST, SMALLEST

DAMPING = 0.01  # of the mean second moment, added to each, so that unseen inputs have some weight
BLOCK = 128  # columns whose errors are compensated in the later ones together


class Moments:
    """The sum of x.T @ x over a product's inputs x, float64 (K, K), and the number of their rows."""

    def __init__(self) -> None:
        self.sum: Tensor | None = None
        self.rows = 0

    def add(self, x: Tensor) -> None:
        """Adds inputs x, (M, K)."""
        product = (x.T @ x).double()  # (K, K)
        self.sum = product if self.sum is None else self.sum + product
        self.rows += x.shape[0]


def round_weight(weight: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
    """Rounds a weight to fp8 with a scale per row, in the form of `fp8.quantize`.

    weight: float32 (N, K). moments: of the inputs that it multiplies.
    Returns float8_e4m3fn (N, K) and float32 (N, 1). Raises ValueError where the moments hold no rows or are not finite.
    """
    if moments.sum is None or not moments.rows or not bool(moments.sum.isfinite().all()):
        raise ValueError(f"expected finite inputs of the product, got {moments.rows} rows, some of them not finite")
    largest = weight.abs().amax(1, keepdim=True).clamp(min=SMALLEST)  # (N, 1)
    inverse, step = (LARGEST / largest).double(), (largest / LARGEST).double()
    order = moments.sum.diagonal().argsort(descending=True, stable=True)
    unrounded = weight.double()[:, order]  # (N, K)
    factor = _inverse_factor(moments.sum[order][:, order])  # (K, K)
    rounded = torch.empty_like(weight, dtype=E4M3)
    for first in range(0, unrounded.shape[1], BLOCK):
        block = slice(first, min(first + BLOCK, unrounded.shape[1]))
        errors = torch.empty_like(unrounded[:, block])  # (N, BLOCK)
        for column in range(block.start, block.stop):
            exact = unrounded[:, column]  # (N,)
            q = (exact[:, None] * inverse).clamp(-LARGEST, LARGEST).float().to(E4M3)  # (N, 1)
            error = (exact - (q.double() * step)[:, 0]) / factor[column, column]  # (N,)
            unrounded[:, column : block.stop] -= error[:, None] * factor[column, column : block.stop]
            errors[:, column - first] = error
            rounded[:, order[column]] = q[:, 0]
        unrounded[:, block.stop :] -= errors @ factor[block, block.stop :]
    return rounded, largest / LARGEST


def _inverse_factor(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped moments, (K, K)."""
    damped = moments + torch.eye(len(moments), dtype=moments.dtype, device=moments.device) * (
        DAMPING * moments.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    )
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
