"""One case, many contenders: each is built and checked, then all are timed in turns.

A contender that is absent, fails or computes something wrong gives a reason instead of a number.
"""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fastbert.utils.timing import Call, Timer, Turns, failure_reason

from .records import ABSENT, FAILED, FASTBERT, TIMED, WRONG, Contender


class Absent(Exception):
    """A contender is not installed, or not available for this device or case; the message says why."""


@dataclass
class Prepared:
    """A contender ready to run.

    step: one call. wrong: in what its output is wrong, or None. resident_bytes: weights and optimizer state, allocated before
    the call. counts_memory: whether a call allocates through PyTorch, which then knows the peak. The rest: as in
    records.Contender.
    """

    step: Callable[[], Any]
    wrong: str | None = None
    real_tokens: int | None = None
    flops: float | None = None
    resident_bytes: int = 0
    counts_memory: bool = True
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """A contender to build. build: loads, compiles and checks; raises Absent where there is nothing to run."""

    name: str
    build: Callable[[], Prepared]


@dataclass(frozen=True)
class Pace:
    """How long to measure.

    rounds: turns of each contender. warm_up: turns that do not count. sustained: seconds to keep the device busy with turns
    before and while measuring, so that its clocks settle; 0 for none.
    """

    rounds: int
    warm_up: int = 3
    sustained: float = 0.0


class DeviceClock:
    """pytest-benchmark's clock: the host's, corrected by what each timed call took on the device."""

    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> float:
        return time.perf_counter() + self.offset

    def replace(self, elapsed: float, true: float) -> None:
        """Lets a region that took `elapsed` on the host count as `true`."""
        self.offset += true - elapsed


CLOCK = DeviceClock()


class PeakTimer(Timer):
    """A timer that also keeps the last call's peak of allocated bytes above what there was before; None on a CPU."""

    peak_bytes: int | None = None

    def __call__(self, step: Call) -> float:
        if self.device.type != "cuda":
            return super().__call__(step)
        torch.cuda.reset_peak_memory_stats(self.device)
        base = torch.cuda.memory_allocated(self.device)
        elapsed = super().__call__(step)
        self.peak_bytes = torch.cuda.max_memory_allocated(self.device) - base
        return elapsed


def compete(
    candidates: Sequence[Candidate],
    device: torch.device,
    pace: Pace,
    *,
    kernel: bool = False,
    benchmark: Any = None,
) -> tuple[Contender, ...]:
    """Runs every candidate and returns them in their order, the baseline first.

    benchmark: pytest-benchmark's fixture, its timer set to CLOCK, which then times fastbert; the others take their turns in its
    set-up.
    """
    timer = PeakTimer(device, kernel)
    found: dict[str, Contender] = {}
    ready: dict[str, Prepared] = {}
    for candidate in candidates:
        found[candidate.name], prepared = _prepare(candidate, timer)
        if prepared is not None:
            ready[candidate.name] = prepared
    peaks: dict[str, int] = {}

    def keep_peak(name: str, elapsed: float) -> None:
        if timer.peak_bytes is not None and ready[name].counts_memory:
            peaks[name] = max(peaks.get(name, 0), ready[name].resident_bytes + timer.peak_bytes)

    turns = Turns({name: prepared.step for name, prepared in ready.items()}, timer, on_turn=keep_peak)
    _run(turns, pace, benchmark, FASTBERT)

    def result(name: str) -> Contender:
        if name in turns.failures:
            return replace(found[name], status=FAILED, reason=failure_reason(turns.failures[name]))
        if name not in ready:
            return found[name]
        return replace(found[name], seconds=tuple(turns.seconds[name]), peak_bytes=peaks.get(name))

    return tuple(result(candidate.name) for candidate in candidates)


def _run(turns: Turns, pace: Pace, benchmark: Any, measured: str) -> None:
    """All rounds of one case; `measured` is the last of each round, so that every other is between two of its turns."""

    def others(counts: bool) -> None:
        for name in turns.order():
            if name != measured:
                turns.turn(name, counts=counts)

    def all_contenders(counts: bool) -> None:
        others(counts)
        if measured in turns.calls:
            turns.turn(measured, counts=counts)

    def timed_by_benchmark() -> None:
        begin = time.perf_counter()
        elapsed = turns.turn(measured)
        if elapsed is not None:
            CLOCK.replace(time.perf_counter() - begin, elapsed)

    deadline = time.monotonic() + pace.sustained
    for _ in range(pace.warm_up):
        all_contenders(counts=False)
    while time.monotonic() < deadline - pace.sustained / 2:
        all_contenders(counts=False)
    if benchmark is not None and measured in turns.calls and measured not in turns.failures:
        benchmark.pedantic(timed_by_benchmark, setup=lambda: others(counts=True), rounds=pace.rounds)
    else:
        for _ in range(pace.rounds):
            all_contenders(counts=True)
    while time.monotonic() < deadline:
        all_contenders(counts=False)


def _prepare(candidate: Candidate, timer: Timer) -> tuple[Contender, Prepared | None]:
    name = candidate.name
    try:
        prepared = candidate.build()
        if prepared.wrong is not None:
            return Contender(name, WRONG, prepared.wrong, details=prepared.details), None
        prepared.step()
        timer.synchronize()
    except Absent as reason:
        return Contender(name, ABSENT, str(reason)), None
    except Exception as error:
        return Contender(name, FAILED, failure_reason(error)), None
    finally:
        _free(timer.device)
    contender = Contender(name, TIMED, real_tokens=prepared.real_tokens, flops=prepared.flops, details=dict(prepared.details))
    return contender, prepared


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
