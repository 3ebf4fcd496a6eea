"""Options and the closing table of the benchmarks. `--quick` only checks that each one runs."""

import os

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
_RATIOS = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="smallest sizes, one round: checks that each benchmark runs")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RATIOS] = []


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    lines = config.stash[_RATIOS]
    if lines:
        terminalreporter.section("side by side")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture
def quick(request) -> bool:
    return request.config.getoption("--quick")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def side_by_side(request, benchmark, device):
    """side_by_side(baseline, ours, rounds=…, conditions=…): the two take turns; the ratio of their medians is reported.

    baseline, ours: callables without arguments. conditions: what a reader needs to judge the ratio, in words. The
    baseline runs in the set-up of each round of `ours`, so pytest-benchmark times ours alone and the machine's mood hits
    both. Returns the ratio; above 1, ours is faster.
    """
    import statistics
    import time

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def measure(baseline, ours, *, rounds: int, conditions: str) -> float:
        seconds: list[float] = []

        def baseline_turn() -> None:
            synchronize()
            start = time.perf_counter()
            baseline()
            synchronize()
            seconds.append(time.perf_counter() - start)

        def our_turn() -> None:
            ours()
            synchronize()

        warm_up = 1 if rounds > 1 else 0
        benchmark.pedantic(our_turn, setup=baseline_turn, rounds=rounds, warmup_rounds=warm_up)
        if benchmark.stats is None:  # pytest-benchmark was switched off: it ran, there is nothing to compare
            return float("nan")
        theirs, median = statistics.median(seconds[warm_up:]), benchmark.stats.stats.median
        ratio = theirs / median
        benchmark.extra_info.update(baseline_seconds=seconds[warm_up:], ratio=ratio, conditions=conditions)
        request.config.stash[_RATIOS].append(
            f"{request.node.name}: {theirs * 1e3:.2f} ms / {median * 1e3:.2f} ms = {ratio:.2f}x ({rounds} rounds in turn; "
            f"{conditions})"
        )
        return ratio

    return measure
