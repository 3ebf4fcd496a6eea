"""Timing of several variants in turn, so that a machine that slows down slows all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

FLUSH_BYTES = 1 << 28  # larger than any L2


@dataclass(frozen=True)
class Timing:
    """Seconds of each round, in order."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the interquartile range over the median."""
        if len(self.seconds) < 4:
            return (max(self.seconds) - min(self.seconds)) / 2 / self.median
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / 2 / self.median


def interleaved(
    variants: Mapping[str, Callable[[], object]], device: torch.device, *, rounds: int, warm_up: int = 2
) -> dict[str, Timing]:
    """Runs every variant once per round and returns their times, of `rounds` rounds after `warm_up` untimed ones.

    The device is synchronised before and after each call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for i in range(warm_up + rounds):
        for name, call in variants.items():
            _synchronize(device)
            start = time.perf_counter()
            call()
            _synchronize(device)
            if i >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


class Timer:
    """Measures the seconds of one call.

    kernel: on a GPU, the time between device events with a cold L2, as a kernel runs inside a model; else the wall clock
    between synchronisations, as a user waits.
    """

    def __init__(self, device: torch.device, kernel: bool) -> None:
        self.device, self.on_events = device, kernel and device.type == "cuda"
        self.flush = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device=device) if self.on_events else None

    def __call__(self, step: Callable[[], object]) -> float:
        if self.flush is not None:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.flush.zero_()  # while it runs, the host queues the step: no launch gap is measured
            start.record()
            step()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3
        _synchronize(self.device)
        begin = time.perf_counter()
        step()
        _synchronize(self.device)
        return time.perf_counter() - begin

    def synchronize(self) -> None:
        _synchronize(self.device)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
