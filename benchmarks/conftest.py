"""Options of the benchmarks, the fixture that records a row, and the closing table."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.harness import ceilings, conditions, plan
from benchmarks.harness.arena import CLOCK, Candidate, Pace, compete
from benchmarks.harness.records import TIMED, Case, Row, load
from benchmarks.harness.summary import lines_of
from benchmarks.peers import compiled
from fastbert.utils.files import write_whole

_ROWS = pytest.StashKey[dict[str, Row]]()
_MACHINE = pytest.StashKey[dict[str, Any]]()
_SIZE = pytest.StashKey[plan.Size]()
HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastbert")
    group.addoption("--quick", action="store_true", help="small sizes, for a CPU; the default where there is no GPU")
    group.addoption("--full", action="store_true", help="every size of the records; hours on a GPU")
    group.addoption("--record", type=Path, metavar="FILE", help="write the rows to this file, whole after each one")
    group.addoption("--resume", action="store_true", help="continue --record FILE: skip what it has")
    group.addoption(
        "--sustained", type=float, default=0.0, metavar="SECONDS", help="keep the device busy so long for each case"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_SIZE] = run_size(config)
    config.stash[_ROWS] = {}
    if config.getoption("--resume"):
        if config.getoption("--record") is None:
            raise pytest.UsageError("expected --record FILE beside --resume, got none")
        config.stash[_ROWS] = {row.test: row for row in load(config.getoption("--record")).rows}


def run_size(config: pytest.Config) -> plan.Size:
    if config.getoption("--quick") and config.getoption("--full"):
        raise pytest.UsageError("expected --quick or --full, got both")
    if config.getoption("benchmark_disable", False):
        return "check"
    if config.getoption("--full"):
        return "full"
    return "quick" if config.getoption("--quick") or not torch.cuda.is_available() else "default"


CASES = {
    "kernel_case": plan.kernel_cases,
    "inference_case": plan.inference_cases,
    "training_case": plan.training_cases,
    "scaling_case": plan.scaling_cases,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, cases in CASES.items():
        if name in metafunc.fixturenames:
            found = cases(metafunc.config.stash[_SIZE])
            metafunc.parametrize(name, found, ids=[case.id for case in found])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.benchmark(timer=CLOCK))
            if item.nodeid in item.config.stash[_ROWS]:
                item.add_marker(pytest.mark.skip(reason=f"already in {item.config.getoption('--record')}"))


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    rows = config.stash[_ROWS]
    if rows:
        terminalreporter.section("side by side")
        for line in lines_of(rows.values()):
            terminalreporter.write_line(line)


def pytest_benchmark_update_json(config: pytest.Config, benchmarks, output_json: dict) -> None:
    output_json["fastbert"] = _content(config)


def _content(config: pytest.Config) -> dict[str, Any]:
    """What `records.load` reads. The machine is measured once, before the first row is written."""
    if _MACHINE not in config.stash:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtypes = (torch.bfloat16, torch.float16) if device.type == "cuda" else (torch.float32,)
        config.stash[_MACHINE] = {
            "conditions": conditions.conditions() | {"size": config.stash[_SIZE]},
            "ceilings": ceilings.measure(device, dtypes, config.stash[_SIZE] in ("check", "quick")),
        }
    machine = config.stash[_MACHINE]
    machine["conditions"]["clocks after"] = conditions.clocks_now()
    return machine | {"rows": [row.as_dict() for row in config.stash[_ROWS].values()]}


@pytest.fixture(scope="session")
def size(request) -> plan.Size:
    return request.config.stash[_SIZE]


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _forget_compiled() -> None:
    compiled.start_case()


@pytest.fixture
def race(request, benchmark, device, size):
    """race(case, candidates, kernel=False, details={}): times all in turns and records the row, baseline first.

    The test fails where the baseline or fastbert itself gives no number; others may be absent, fail or be wrong.
    """

    def run(case: Case, candidates: list[Candidate], *, kernel: bool = False, details: dict[str, Any] | None = None) -> Row:
        pace = Pace(plan.ROUNDS[size], 0 if size == "check" else 2, request.config.getoption("--sustained"))
        contenders = compete(candidates, device, pace, kernel=kernel, benchmark=benchmark)
        row = Row(case, tuple(replace(one, details=one.details | (details or {})) for one in contenders), request.node.nodeid)
        request.config.stash[_ROWS][row.test] = row
        record = request.config.getoption("--record")
        if record is not None:
            record.parent.mkdir(parents=True, exist_ok=True)
            write_whole(record, json.dumps({"fastbert": _content(request.config)}) + "\n")
        for contender in row.contenders:
            if contender is row.baseline or contender.name.startswith("fastbert"):
                assert contender.status == TIMED, f"{contender.name} {contender.status}: {contender.reason}"
        return row

    return run
