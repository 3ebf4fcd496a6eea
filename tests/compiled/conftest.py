"""Kernels compiled to PTX and run in the emulator: `pytest tests/compiled --compiled=sm_90`. Options and fixtures.

A test that asks for `target` or `emulator` runs with --compiled only, and only such a test does (tests/conftest.py).
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from types import ModuleType

import pytest

from fastbert.verification.proofs import read_proofs
from tests.compiled.judging import Judge
from tests.compiled.recording import Recorder, Worker

MULTIPROCESSORS = 3  # as under the interpreter: partial sums are added, and persistent programs walk several tiles
# Notes on registers, which ptxas sees whole: where a wait lacks it puts one (its message C7517), and a fence (C7519) where a
# register is written between fence and product, such as an accumulator's zeros that LLVM moved there. Neither changes the
# answer; the codegen table fails on the first, which costs time.
HARMLESS = ("before wgmma.wait_group", "registers written after wgmma.fence")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("compiled kernels")
    with suppress(ValueError):  # the benchmarks' option of this name, where both are run
        group.addoption("--full", action="store_true", help="every sample of every operation")
    group.addoption(
        "--adversarial",
        action="store_true",
        help="the latest schedule: asynchronous copies land at once, asynchronous products read when they are waited for",
    )
    group.addoption(
        "--record-proofs",
        action="store_true",
        help="note every operation that passed in the record that `fastbert verify` shows; with --full, of the whole folder",
    )


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--record-proofs"):
        return
    if hasattr(config, "workerinput"):  # of xdist
        config.pluginmanager.register(Worker(config))
        return
    if not config.getoption("--compiled"):
        raise pytest.UsageError("expected --compiled=sm_80 or sm_90 beside --record-proofs, got none")
    if config.getoption("--adversarial"):  # test_late_schedule.py has it in every run
        raise pytest.UsageError("expected --record-proofs without --adversarial: proofs are of the usual schedule")
    try:
        read_proofs()  # now, not after hours
    except ValueError as error:
        raise pytest.UsageError(f"{error}; remove it to record anew") from error
    config.pluginmanager.register(Recorder(config))


@pytest.fixture(scope="session")
def target(pytestconfig: pytest.Config) -> int:
    """The architecture whose PTX runs: 80 or 90."""
    return int(pytestconfig.getoption("--compiled").removeprefix("sm_"))


@pytest.fixture(scope="session")
def full(pytestconfig: pytest.Config) -> bool:
    """Whether every sample is asked for."""
    return pytestconfig.getoption("--full", False)


@pytest.fixture(scope="session")
def _active_emulator(target: int, pytestconfig: pytest.Config) -> Iterator[ModuleType]:
    """Triton's device is the emulator, and fastbert takes CPU tensors for a GPU's, until the process ends."""
    from fastbert.kernels.backend import use_backend  # here, so that this file can be read where Triton interprets
    from tests import emulator
    from tests.emulator.library import library_of_a_gpu

    late = pytestconfig.getoption("--adversarial", False)
    with emulator.install(target, MULTIPROCESSORS), library_of_a_gpu(), use_backend("triton"):
        with emulator.settings.changed(late_products=late):
            yield emulator


@pytest.fixture
def emulator(_active_emulator: ModuleType) -> Iterator[ModuleType]:
    """The module tests.emulator, active, its statistics those of the test. Fails the test where anything was found."""
    _active_emulator.stats.reset()
    yield _active_emulator
    report = _active_emulator.stats.report
    notes = [note for note in report.notes if not any(harmless in note for harmless in HARMLESS)]
    found = [*notes, *report.unwritten.values()]
    assert not found, "\n".join(found)


@pytest.fixture
def judge(emulator: ModuleType, record_property: Callable[[str, object], None]) -> Judge:
    return Judge(emulator, record_property)
