"""The 8-bit format of `fp8` (e4m3, Micikevicius et al. 2022): its numbers, and which columns share a scale."""

import torch

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
SMALLEST = 1e-12  # magnitude below which a row counts as zeros
GROUP = 128  # columns that share a scale where a row's maximum is not known in one program: a tile of the product before
MIN_COMPUTE_CAPABILITY = (8, 9)


def num_groups(columns: int) -> int:
    return -(-columns // GROUP)
