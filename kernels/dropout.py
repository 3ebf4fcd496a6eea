"""The arithmetic of dropout that kernels, reference and tests share. Imports no Triton.

A kernel keeps an element when a 16-bit random word is at least `threshold`, so the rate is a multiple of 1/65536 and the
survivors are scaled by the exact inverse of that rate. The mask is a function of (seed, stream, place of the element in
the packed batch): not of tile shape, warps or device.
"""

import torch

RESOLUTION = 1 << 16


def check_dropout_p(dropout_p: float) -> None:
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"dropout_p must lie in [0, 1], got {dropout_p}")


def threshold(dropout_p: float) -> int:
    """The number of 16-bit words that drop an element: round(p * 65536)."""
    return round(dropout_p * RESOLUTION)


def scale(dropout_p: float) -> float:
    """The factor on a kept element, 1 / (1 - threshold/65536); 0 when everything is dropped."""
    kept = RESOLUTION - threshold(dropout_p)
    return RESOLUTION / kept if kept else 0.0


def new_seed(device: torch.device) -> torch.Tensor:
    """A fresh seed from PyTorch's generator of that device: int64, shape (1,), without a host synchronisation."""
    return torch.randint(0, 2**63 - 1, (1,), dtype=torch.int64, device=device)
