"""The arena: contenders take turns, a reason replaces a number, the clock counts what the device says."""

import pytest
import torch

from benchmarks.harness.arena import CLOCK, Absent, Candidate, Pace, Prepared, compete
from benchmarks.harness.records import ABSENT, FAILED, TIMED, WRONG

CPU = torch.device("cpu")


def test_contenders_take_turns_and_failures_give_a_reason():
    turns: list[str] = []

    def counted(name: str, fails_after: int | None = None) -> Candidate:
        def step() -> None:
            turns.append(name)
            if fails_after is not None and turns.count(name) > fails_after:
                raise RuntimeError("planted\nsecond line")

        return Candidate(name, lambda: Prepared(step))

    def absent() -> Prepared:
        raise Absent("not installed")

    def breaks() -> Prepared:
        raise ValueError("cannot load")

    candidates = [
        counted("base"),
        Candidate("gone", absent),
        Candidate("broken", breaks),
        counted("crashes", fails_after=3),
        Candidate("wrong", lambda: Prepared(lambda: turns.append("wrong"), wrong="differs")),
        counted("fastbert"),
    ]
    found = {contender.name: contender for contender in compete(candidates, CPU, Pace(rounds=5, warm_up=1))}
    assert [found[c.name].status for c in candidates] == [TIMED, ABSENT, FAILED, FAILED, WRONG, TIMED]
    assert found["gone"].reason == "not installed"
    assert found["crashes"].reason == "RuntimeError: planted"
    assert found["crashes"].seconds == ()
    assert "wrong" not in turns
    assert len(found["base"].seconds) == len(found["fastbert"].seconds) == 5
    positions = [position for position, name in enumerate(turns) if name == "fastbert"]
    assert all("base" in turns[a:b] for a, b in zip(positions, positions[1:]))  # the baseline between any two of fastbert's


def test_the_device_clock_counts_what_the_device_says():
    begin = CLOCK()
    CLOCK.replace(0.0, 100.0)
    assert CLOCK() - begin == pytest.approx(100.0, abs=1.0)
    CLOCK.replace(100.0, 0.0)
