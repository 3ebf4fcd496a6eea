"""Turns: order, warm-up, failures."""

import itertools

import pytest
import torch

from fastbert.utils.timing import Timing, Turns, failure_reason, interleaved, largest_spread, steadiest, take_turns


def test_rounds_have_one_turn_each_and_warm_up_does_not_count():
    seen, counted = [], []
    calls = {name: lambda name=name: seen.append(name) for name in ("a", "b", "c")}

    def clock(call) -> float:
        call()
        return float(len(seen))

    turns = take_turns(calls, clock, rounds=6, warm_up=2, on_turn=lambda name, seconds: counted.append((name, seconds)))
    rounds = [seen[start : start + 3] for start in range(0, len(seen), 3)]
    assert len(rounds) == 8
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1  # no contender always follows the same other one
    assert {name: len(timing.seconds) for name, timing in turns.timings.items()} == {"a": 6, "b": 6, "c": 6}
    assert counted == [(name, float(number)) for number, name in enumerate(seen, 1)][6:]


def test_a_contender_that_fails_gets_no_further_turn():
    seen: list[str] = []

    def fails() -> None:
        seen.append("fails")
        if seen.count("fails") == 3:
            raise RuntimeError("planted\nsecond line")

    turns = take_turns({"fails": fails, "works": lambda: seen.append("works")}, lambda call: call() or 1.0, rounds=5, warm_up=1)
    assert seen.count("fails") == 3
    assert turns.seconds["works"] == [1.0] * 5
    assert list(turns.timings) == ["works"]
    assert failure_reason(turns.failures["fails"]) == "RuntimeError: planted"
    assert turns.turn("fails") is None


def test_out_of_memory_is_said_in_three_words():
    assert failure_reason(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate a lot")) == "out of memory"


def test_interleaved_raises_what_a_call_raised():
    def fails() -> None:
        raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        interleaved({"works": lambda: None, "fails": fails}, torch.device("cpu"), rounds=1)
    timings = interleaved({"works": lambda: None}, torch.device("cpu"), rounds=5, warm_up=0)
    assert len(timings["works"].seconds) == 5
    assert isinstance(Turns({}, lambda call: 0.0).timings, dict)


# Noise

STEADY = (1.0, 1.01, 1.0, 0.99, 1.0)
NOISY = (1.0, 2.0, 1.0, 2.0, 1.0)
NOISIER = (1.0, 4.0, 1.0, 4.0, 1.0)


def played(*tries: tuple[float, ...]):
    """A measurement that gives these timings in order, of one steady contender and of one as planted."""
    waiting = iter(tries)
    return lambda: {"steady": Timing(STEADY), "planted": Timing(next(waiting))}


def run_steadiest(*tries: tuple[float, ...], allowed: int = 3, seconds: float = 60.0, step: float = 1.0):
    """(the planted contender's timings that were taken, the spreads that were told); the clock moves by `step` at each look."""
    told: list[float] = []
    ticks = itertools.count(0.0, step)
    found = steadiest(
        played(*tries), allowed_spread=0.2, tries=allowed, seconds=seconds, on_noise=told.append, now=lambda: next(ticks)
    )
    return found["planted"].seconds, told


def test_a_steady_try_is_taken_at_once():
    assert run_steadiest(STEADY) == (STEADY, [])


def test_a_noisy_try_is_told_and_repeated_until_a_steady_one():
    taken, told = run_steadiest(NOISY, NOISIER, STEADY)
    assert taken == STEADY
    assert told == [Timing(NOISY).spread, Timing(NOISIER).spread]


def test_of_noisy_tries_alone_the_steadiest_after_the_last():
    taken, told = run_steadiest(NOISIER, NOISY, NOISIER)
    assert taken == NOISY
    assert len(told) == 2
    assert largest_spread({"steady": Timing(STEADY), "planted": Timing(NOISY)}) == Timing(NOISY).spread > 0.2


def test_no_try_begins_after_the_time_is_up():
    taken, told = run_steadiest(NOISY, NOISIER, step=40.0)  # at the looks before a second and a third try: 40 s and 80 s
    assert taken == NOISY
    assert len(told) == 1
