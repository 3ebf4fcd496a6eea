"""Timing side by side: contenders take turns, so that a machine that slows down slows all of them."""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

FLUSH_BYTES = 1 << 28  # larger than any L2
Call = Callable[[], object]
Clock = Callable[[Call], float]  # runs the call once and returns its seconds


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


class Turns:
    """Contenders timed round by round, in a new order each round.

    calls: what one turn of a contender runs, by name. clock: times one call, for example a `Timer`. on_turn: receives the
    name and the seconds of every turn that counts.

    seconds: of the turns that counted, by name. failures: what a contender raised; from then on it gets no turn.
    """

    def __init__(self, calls: Mapping[str, Call], clock: Clock, *, on_turn: Callable[[str, float], None] | None = None) -> None:
        self.calls, self.clock, self.on_turn = dict(calls), clock, on_turn
        self.seconds: dict[str, list[float]] = {name: [] for name in calls}
        self.failures: dict[str, Exception] = {}
        self._random = random.Random(0)

    def order(self) -> list[str]:
        """Every name in a new order, so that no contender always follows the same other one."""
        return self._random.sample(list(self.calls), len(self.calls))

    def turn(self, name: str, *, counts: bool = True) -> float | None:
        """The seconds of one turn, or None where the contender fails or has failed before."""
        if name in self.failures:
            return None
        try:
            elapsed = self.clock(self.calls[name])
        except Exception as error:  # one contender's crash does not end the run of the others
            self.failures[name] = error
            return None
        if counts:
            self.seconds[name].append(elapsed)
            if self.on_turn is not None:
                self.on_turn(name, elapsed)
        return elapsed

    def round(self, *, counts: bool = True) -> None:
        """One turn of every contender."""
        for name in self.order():
            self.turn(name, counts=counts)

    @property
    def timings(self) -> dict[str, Timing]:
        """Of the contenders that did not fail."""
        return {name: Timing(tuple(taken)) for name, taken in self.seconds.items() if name not in self.failures and taken}


def take_turns(
    calls: Mapping[str, Call],
    clock: Clock,
    *,
    rounds: int,
    warm_up: int = 2,
    on_turn: Callable[[str, float], None] | None = None,
) -> Turns:
    """`rounds` rounds of `Turns`, after `warm_up` rounds that do not count."""
    turns = Turns(calls, clock, on_turn=on_turn)
    for number in range(warm_up + rounds):
        turns.round(counts=number >= warm_up)
    return turns


def interleaved(calls: Mapping[str, Call], device: torch.device, *, rounds: int, warm_up: int = 2) -> dict[str, Timing]:
    """Wall-clock timings of calls that take turns. Raises what the first call to fail raised."""
    turns = take_turns(calls, Timer(device, kernel=False), rounds=rounds, warm_up=warm_up)
    for error in turns.failures.values():
        raise error
    return turns.timings


def largest_spread(timings: Mapping[str, Timing]) -> float:
    return max(timing.spread for timing in timings.values())


def steadiest(
    measure: Callable[[], dict[str, Timing]],
    *,
    allowed_spread: float,
    tries: int,
    seconds: float,
    on_noise: Callable[[float], None],
    now: Callable[[], float] = time.monotonic,
) -> dict[str, Timing]:
    """The timings of the first try in which no spread is above `allowed_spread`, else of the steadiest.

    measure: one try. tries, seconds: no further try begins after that many, or once that long has passed. on_noise: receives
    the largest spread of a try that is about to be repeated.
    """
    begin = now()
    best = measure()
    latest = best
    for _ in range(tries - 1):
        if largest_spread(best) <= allowed_spread or now() - begin >= seconds:
            break
        on_noise(largest_spread(latest))
        latest = measure()
        best = min(best, latest, key=largest_spread)
    return best


def failure_reason(error: Exception) -> str:
    """The exception in one line, as tables print it."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


class Timer:
    """The clock of one call, in seconds.

    kernel: time between device events with a cold L2, which is what a kernel costs inside a model; else wall clock between
    synchronisations, which is what a user waits for.
    """

    def __init__(self, device: torch.device, kernel: bool) -> None:
        self.device, self.on_events = device, kernel and device.type == "cuda"
        self.flush = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device=device) if self.on_events else None

    def __call__(self, step: Call) -> float:
        if self.flush is not None:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.flush.zero_()  # while it runs, the host gets ahead: no launch gap is measured
            start.record()
            step()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3
        self.synchronize()
        begin = time.perf_counter()
        step()
        self.synchronize()
        return time.perf_counter() - begin

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
