"""The arithmetic of dropout that kernels, reference and tests share. Imports no Triton.

A kernel keeps an element when a 16-bit random word is at least `threshold`, so the rate of dropping is a multiple of 1/65536,
and kept elements are scaled by exactly 1 / (1 - rate). The mask is a function of (seed, stream, position of the element in
the packed batch), not of tile shape, warps or device.
"""

import torch

RESOLUTION = 1 << 16


def check_dropout_p(dropout_p: float) -> None:
    """Raises ValueError for a probability outside [0, 1]."""
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"dropout_p must lie in [0, 1], got {dropout_p}")


def threshold(dropout_p: float) -> int:
    """How many of the 65536 random words drop an element: round(p * 65536)."""
    return round(dropout_p * RESOLUTION)


def scale(dropout_p: float) -> float:
    """The factor on a kept element, 1 / (1 - threshold/65536); 0 when everything is dropped."""
    kept = RESOLUTION - threshold(dropout_p)
    return RESOLUTION / kept if kept else 0.0


def new_seed(device: torch.device) -> torch.Tensor:
    """A new seed from PyTorch's generator of that device: int64 of shape (1,), drawn without waiting for the device."""
    return torch.randint(0, 2**63 - 1, (1,), dtype=torch.int64, device=device)
