"""What runs, what fails and what is recorded, without a kernel: the plan, the judge and the recorder. No --compiled."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastbert.kernels.specs.accuracy import Accuracy
from fastbert.kernels.specs.registry import ALL_SPECS
from fastbert.verification import proofs
from tests.compiled.complete import complete
from tests.compiled.judging import PROPERTY, Judge
from tests.compiled.plan import ELSEWHERE, KINDS, kernels_of, kinds_of, targets_of
from tests.compiled.recording import Recorder, Worker
from tests.compiled.test_operations import name_of, runs

BF16, FP32 = KINDS[0], KINDS[2]
GOOD, BAD = Accuracy("out", 1.0, 1.0, 2.0), Accuracy("out", 3.0, 1.0, 2.0)


class Fault(RuntimeError):
    pass


@pytest.mark.parametrize("spec", ALL_SPECS, ids=lambda spec: spec.name)
def test_each_sample_runs_once_on_one_target_in_one_kind(spec):
    samples = [
        run[0].name for target in targets_of(spec) for kind in kinds_of(spec) for run in runs(spec, kind, target, False)[0]
    ]
    assert sorted(samples) == sorted(sample.name for sample in spec.samples)
    full = [run[0].name for run in runs(spec, BF16, 90, True)[0]]
    assert set(full) == set(samples)


@pytest.mark.parametrize("spec", ALL_SPECS, ids=lambda spec: spec.name)
def test_what_is_left_out_may_follow(spec):
    first, others = runs(spec, FP32, 90, False)
    assert {sample.name for sample, _ in (*first, *others)} == {sample.name for sample in spec.samples}
    assert not [run for run in others if run in first]


def test_kernels_are_those_of_the_target_and_of_the_numbers():
    by_name = {spec.name: spec for spec in ALL_SPECS}
    assert kernels_of(by_name["fp8_linear"], BF16, 80) == set()
    assert kernels_of(by_name["fp8_linear"], BF16, 90) >= {"fp8_gemm_kernel", "quantize_kernel"}
    assert "gemm_fwd_tma_kernel" in kernels_of(by_name["linear"], BF16, 90)
    assert "gemm_fwd_tma_kernel" not in kernels_of(by_name["linear"], BF16, 80)
    assert "gemm_fwd_tma_kernel" not in kernels_of(by_name["linear"], FP32, 90)
    assert "gemm_fwd_kernel" in kernels_of(by_name["linear"], FP32, 80)


def test_kernels_that_run_elsewhere_ship():
    assert set().union(*(kernels_of(spec, BF16, 90) for spec in ALL_SPECS)) >= ELSEWHERE


@dataclass
class Judged:
    """A judge, the kernels it believes were launched, and the properties it gave the test's report."""

    kernels: dict[str, Any] = field(default_factory=dict)
    properties: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        emulator: Any = SimpleNamespace(stats=self, Fault=Fault)
        self.judge = Judge(emulator, self.properties.__setitem__)


def test_a_judge_runs_on_after_a_failure_and_names_each():
    def faulty() -> list[Accuracy]:
        raise Fault("misaligned read of 16 bytes")

    judged = Judged(kernels={"fwd_kernel": None})
    judged.judge.check("gelu", "bf16", "first", faulty)
    judged.judge.check("gelu", "bf16", "second", lambda: [GOOD, BAD])
    judged.judge.check("gelu", "bf16", "third", lambda: [GOOD])
    with pytest.raises(pytest.fail.Exception) as failure:
        judged.judge.verdict({"fwd_kernel", "bwd_kernel"})
    count, *lines = [line for line in str(failure.value).splitlines() if line]
    assert count == "3 failures"
    assert lines == [
        "gelu bf16 first: Fault: misaligned read of 16 bytes",
        "gelu bf16 second: out: error 3.000e+00, PyTorch's 1.000e+00, allowed 2.000e+00",
        "bwd_kernel was never launched",
    ]


def test_a_judge_passes_what_is_within_its_limit():
    judged = Judged(kernels={"fwd_kernel": None})
    judged.judge.check("gelu", "bf16", "one", lambda: [GOOD])
    judged.judge.verdict({"fwd_kernel"})
    assert judged.properties[PROPERTY] == [{"operation": "gelu", "kind": "bf16", "sample": "one", "tensors": 1, "worst": 0.5}]


@pytest.mark.parametrize("spec", ALL_SPECS, ids=lambda spec: spec.name)
def test_a_whole_run_has_every_sample_in_every_kind_and_more_than_a_short_one(spec):
    for target in targets_of(spec):
        every = complete(spec, target)
        assert {kind for kind, _ in every} == {kind.name for kind in kinds_of(spec)}
        for kind in kinds_of(spec):
            assert {(kind.name, f"{sample.name} (triton)") for sample in spec.samples} <= every
            short = {(kind.name, name_of(run)) for run in runs(spec, kind, target, False)[0]}
            assert short < every


def test_a_whole_run_has_the_tiles_of_the_operation():
    by_name = {spec.name: complete(spec, 90) for spec in ALL_SPECS}
    assert any(name.startswith("wgrad ") for _, name in by_name["linear"])
    assert not any(name.startswith("qkv_") for _, name in by_name["linear"])
    assert not any(kind == "tf32" for kind, _ in by_name["layer_norm"])
    assert complete(next(spec for spec in ALL_SPECS if spec.name == "fp8_linear"), 80) == set()


@cache
def whole(operation: str) -> list[tuple[str, str]]:
    """Not at import: every worker would ask the specs for their kernels."""
    return sorted(complete(next(spec for spec in ALL_SPECS if spec.name == operation), 90))


def report(operation: str = "", passed: Any = (), failed: bool = False, when: str = "teardown") -> Any:
    found = [dict(operation=operation, kind=kind, sample=sample, tensors=2, worst=0.25) for kind, sample in passed]
    return SimpleNamespace(user_properties=[(PROPERTY, found)] if found else [], failed=failed, when=when, nodeid="a test")


def reports() -> tuple[Any, Any]:
    """Of tests that passed all of two operations."""
    return report("linear", whole("linear")), report("layer_norm", whole("layer_norm"))


def recorder(*arguments: str, full: bool = True, **options: Any) -> Recorder:
    options |= {"--compiled": "sm_90", "--full": full}
    where = SimpleNamespace(dir=Path(__file__).parents[2])
    config: Any = SimpleNamespace(
        getoption=lambda name, *default: options.get(name, *default),
        args=arguments or ["tests/compiled"],
        invocation_params=where,
    )
    return Recorder(config)


def recorded(monkeypatch, recorder: Recorder, *reports: Any, status: int = 0, stopped: str = "") -> tuple[dict, set, list[str]]:
    """(what is recorded after these reports, by operation, what is taken out, the lines printed)."""
    new, out, lines = {}, set(), []

    def add_proofs(proofs: Any, failed: Any) -> None:
        new.update({proof.operation: proof for proof in proofs})
        out.update(failed)

    monkeypatch.setattr(proofs, "add_proofs", add_proofs)
    for one in reports:
        recorder.pytest_runtest_logreport(one)
    recorder.pytest_sessionfinish(SimpleNamespace(shouldstop=False, shouldfail=stopped), status)
    recorder.pytest_terminal_summary(SimpleNamespace(write_line=lines.append))
    return new, out, lines


def test_a_recorder_notes_what_passed_whole(monkeypatch):
    new, out, lines = recorded(monkeypatch, recorder(), *reports())
    proof = new["linear"]
    assert (new.keys(), out) == ({"linear", "layer_norm"}, set())
    assert (proof.target, proof.kinds, proof.runs) == ("sm_90", ("bf16", "fp16", "fp32", "tf32"), len(whole("linear")))
    assert (proof.tensors, proof.worst, proof.runs_digest) == (
        2 * len(whole("linear")),
        0.25,
        proofs.digest_of_runs(whole("linear")),
    )
    assert any(line.startswith("not recorded: attention, expected ") and "got 0" in line for line in lines)


@pytest.mark.parametrize(
    "change", [lambda runs: runs[1:], lambda runs: runs[:-1], lambda runs: [*runs[1:], ("bf16", "another")]]
)
def test_a_recorder_wants_every_run_of_an_operation(monkeypatch, change):
    new, out, lines = recorded(monkeypatch, recorder(), report("linear", change(whole("linear"))), reports()[1])
    assert (new.keys(), out) == ({"layer_norm"}, set())
    assert any(
        line.startswith(f"not recorded: linear, expected {len(whole('linear'))} runs, got {len(whole('linear')) - 1} and")
        for line in lines
    )


def test_a_recorder_takes_out_what_failed(monkeypatch):
    new, out, lines = recorded(
        monkeypatch, recorder(), *reports(), report("linear", whole("linear")[:1], failed=True), status=1
    )
    assert (new.keys(), out) == ({"layer_norm"}, {("linear", "sm_90")})
    assert lines[-1] == "not recorded, since a test failed: linear"


def test_a_recorder_counts_a_test_once(monkeypatch):
    """Each of its three reports carries what it found."""
    new, _, _ = recorded(
        monkeypatch, recorder(), *(report("linear", whole("linear"), when=when) for when in ("setup", "call", "teardown"))
    )
    assert new["linear"].tensors == 2 * len(whole("linear"))


def test_a_recorder_notes_nothing_where_a_test_of_no_operation_failed(monkeypatch):
    new, out, lines = recorded(monkeypatch, recorder(), *reports(), report(failed=True, when="call"), status=1)
    assert (new, out) == ({}, set())
    assert lines[-1] == "not recorded, since a test failed: a test"


def test_a_recorder_notes_nothing_where_a_file_was_not_collected(monkeypatch):
    one = recorder()
    one.pytest_collectreport(SimpleNamespace(failed=True, nodeid="tests/compiled/test_bert.py"))
    new, _, lines = recorded(monkeypatch, one, *reports(), status=1)
    assert new == {}
    assert lines[-1] == "not recorded, since a test failed: tests/compiled/test_bert.py"


@pytest.mark.parametrize(
    ("part", "status", "stopped", "why"),
    [
        (lambda: recorder(full=False), 0, "", "no --full"),
        (lambda: recorder("tests/compiled/test_operations.py"), 0, "", "a part of compiled"),
        (lambda: recorder("tests/compiled/test_operations.py::test_matches_float64"), 0, "", "a part of compiled"),
        (lambda: recorder(**{"--ignore": ["tests/compiled/test_bert.py"]}), 0, "", "files ignored"),
        (lambda: recorder(**{"--last-failed": True}), 0, "", "--last-failed"),
        (recorder, 2, "", "not run to its end"),
        (recorder, 1, "stopping after 1 failures", "not run to its end"),
    ],
)
def test_a_recorder_notes_nothing_of_a_part(monkeypatch, part, status, stopped, why):
    """But what failed in it has no proof any more."""
    found = (*reports(), report("attention", [("bf16", "one")], failed=True))
    new, out, lines = recorded(monkeypatch, part(), *found, status=status, stopped=stopped)
    assert (new, out) == ({}, {("attention", "sm_90")})
    assert lines[0] == f"no proof recorded: expected the whole of compiled with --full, got a run with {why}"


def test_a_recorder_notes_nothing_where_tests_were_deselected(monkeypatch):
    """By pytest itself, or by a worker of xdist, which says so at its end."""
    alone, of_workers, complete_run = recorder(), recorder(), recorder()
    alone.pytest_deselected([None])
    config: Any = SimpleNamespace(workeroutput={})
    worker = Worker(config)
    complete_run.pytest_testnodedown(config, None)
    worker.pytest_deselected([None, None])
    of_workers.pytest_testnodedown(config, None)
    for one in (alone, of_workers):
        new, _, lines = recorded(monkeypatch, one, *reports())
        assert new == {}
        assert lines[0].endswith("got a run with tests deselected")
    assert recorded(monkeypatch, complete_run, *reports())[0].keys() == {"linear", "layer_norm"}
