"""The 8-bit format of `fp8` (e4m3, Micikevicius et al. 2022): its constants, and which columns share a scale."""

import torch

from .device import cdiv

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
SMALLEST = 1e-12  # the largest magnitude under a scale counts as at least this, so that no scale is 0
GROUP = 128  # columns that share a scale where a matrix product writes them: one tile, so that one program knows their maximum
MIN_COMPUTE_CAPABILITY = (8, 9)


def num_groups(columns: int) -> int:
    """Scales per row of that many columns."""
    return cdiv(columns, GROUP)
