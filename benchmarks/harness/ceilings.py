"""The two rates that bound every kernel, measured on the device: matrix products by dtype, and copying."""

import statistics
from collections.abc import Callable
from typing import Any

import torch

from fastbert.utils.timing import Timer

WARM_UP = 3


def measure(device: torch.device, dtypes: tuple[torch.dtype, ...], quick: bool) -> dict[str, Any]:
    """{'matmul': FLOP/s by dtype name, 'copy': bytes read and written per second, 'how': in words}.

    The product is the library's, square, of random numbers; the copy is much larger than any cache.
    """
    on_gpu = device.type == "cuda"
    size, copied = (8192, 1 << 31) if on_gpu else (512 if quick else 1024, 1 << 27 if quick else 1 << 28)
    rounds = 20 if on_gpu and not quick else 5
    matmul = {}
    for dtype in dtypes:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        seconds = _median(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, rounds)
        matmul[str(dtype).removeprefix("torch.")] = 2 * size**3 / seconds
    source = torch.rand(copied // 4, device=device)
    target = torch.empty_like(source)
    copy = 2 * copied / _median(lambda: target.copy_(source), device, rounds)
    how = f"torch.mm of {size} x {size} random numbers; copy of {copied >> 20} MiB; medians of {rounds}"
    found = {"matmul": matmul, "copy": copy, "how": how}
    if not on_gpu:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        a, b = torch.randn(size, size), torch.randn(size, size)
        found["matmul one thread"] = 2 * size**3 / _median(lambda: torch.mm(a, b), device, rounds)
        torch.set_num_threads(threads)
    return found


def _median(step: Callable[[], object], device: torch.device, rounds: int) -> float:
    timer = Timer(device, kernel=True)
    return statistics.median([timer(step) for _ in range(rounds + WARM_UP)][WARM_UP:])
