"""One case, many contenders: each is built, checked and then timed in turns with the others, so that a machine that slows
down slows all of them. A contender that is absent, fails or answers wrongly gives a reason instead of a number.
"""

import gc
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fastbert.utils.timing import Timer

from .records import ABSENT, FAILED, TIMED, WRONG, Contender


class Absent(Exception):
    """A contender is not there, or not made for this device or case; the message says why."""


@dataclass
class Prepared:
    """A contender ready to run. step: one call. wrong: why its answer is, or None. resident_bytes: weights and optimizer
    state, which were there before the call. counts_memory: whether a call takes its memory from PyTorch, which can then
    tell the peak. The rest: as in records.Contender."""

    step: Callable[[], Any]
    wrong: str | None = None
    real_tokens: int | None = None
    flops: float | None = None
    resident_bytes: int = 0
    counts_memory: bool = True
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """build: loads, compiles and checks; raises Absent where there is nothing to run."""

    name: str
    build: Callable[[], Prepared]


@dataclass(frozen=True)
class Pace:
    """How long to measure. rounds: turns of each contender. warm_up: turns that do not count. sustained: seconds to keep
    the device busy with turns before and while measuring, so that its clocks settle; 0 for none."""

    rounds: int
    warm_up: int = 3
    sustained: float = 0.0


class DeviceClock:
    """pytest-benchmark's clock: the host's, set right by what the device says each timed call took."""

    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> float:
        return time.perf_counter() + self.offset

    def replace(self, elapsed: float, true: float) -> None:
        """Lets a region that took `elapsed` on the host count as `true`."""
        self.offset += true - elapsed


CLOCK = DeviceClock()


def compete(
    candidates: Sequence[Candidate],
    device: torch.device,
    pace: Pace,
    *,
    kernel: bool = False,
    benchmark: Any = None,
    ours: str = "fastbert",
) -> tuple[Contender, ...]:
    """Runs every candidate and returns them in their order, the baseline first.

    benchmark: pytest-benchmark's fixture, its timer set to CLOCK, which then times `ours`; the others take their turns in
    its set-up.
    """
    timer = Timer(device, kernel)
    found: dict[str, Contender] = {}
    ready: dict[str, Prepared] = {}
    for candidate in candidates:
        found[candidate.name], prepared = _prepare(candidate, timer)
        if prepared is not None:
            ready[candidate.name] = prepared
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    peaks: dict[str, int] = {}
    counting, order = False, random.Random(0)

    def turn(name: str) -> None:
        base = _start_peak(device)
        begin = time.perf_counter()
        try:
            elapsed = timer(ready[name].step)
        except Exception as error:  # a contender's crash is a row, not the end of the run
            found[name] = replace(found[name], status=FAILED, reason=_describe(error))
            return
        if counting:
            seconds[name].append(elapsed)
            if device.type == "cuda" and ready[name].counts_memory:
                peak = ready[name].resident_bytes + torch.cuda.max_memory_allocated(device) - base
                peaks[name] = max(peaks.get(name, 0), peak)
        if name == ours:
            CLOCK.replace(time.perf_counter() - begin, elapsed)

    def alive(name: str) -> bool:
        return found[name].status == TIMED

    def others() -> None:
        for name in order.sample(list(ready), len(ready)):  # nobody always follows the same neighbour
            if name != ours and alive(name):
                turn(name)

    def round_of_all() -> None:
        others()
        if ours in ready and alive(ours):
            turn(ours)

    deadline = time.monotonic() + pace.sustained
    for _ in range(pace.warm_up):
        round_of_all()
    while time.monotonic() < deadline - pace.sustained / 2:
        round_of_all()
    counting = True
    if benchmark is not None and ours in ready and alive(ours):
        benchmark.pedantic(lambda: turn(ours), setup=others, rounds=pace.rounds)
    else:
        for _ in range(pace.rounds):
            round_of_all()
    while time.monotonic() < deadline:
        round_of_all()

    def measured(name: str) -> Contender:
        return replace(found[name], seconds=tuple(seconds[name]), peak_bytes=peaks.get(name)) if alive(name) else found[name]

    return tuple(measured(candidate.name) for candidate in candidates)


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
        return Contender(name, FAILED, _describe(error)), None
    finally:
        _free(timer.device)
    contender = Contender(name, TIMED, real_tokens=prepared.real_tokens, flops=prepared.flops, details=dict(prepared.details))
    return contender, prepared


def _describe(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _start_peak(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
