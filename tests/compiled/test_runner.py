"""What runs, what fails and what is recorded, without a kernel: the plan, the judge and the recorder. No --compiled."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from fastbert.kernels.specs.accuracy import Accuracy
from fastbert.kernels.specs.registry import ALL_SPECS
from fastbert.verification import proofs
from tests.compiled.judging import PROPERTY, Judge
from tests.compiled.plan import ELSEWHERE, KINDS, kernels_of, kinds_of, targets_of
from tests.compiled.recording import Recorder
from tests.compiled.test_operations import runs

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
    assert judged.properties[PROPERTY] == [{"operation": "gelu", "kind": "bf16", "tensors": 1, "worst": 0.5}]


def report(*samples: tuple[str, str], failed: bool = False, when: str = "teardown") -> Any:
    found = [{"operation": operation, "kind": kind, "tensors": 2, "worst": 0.25} for operation, kind in samples]
    return SimpleNamespace(user_properties=[(PROPERTY, found)] if samples else [], failed=failed, when=when, nodeid="a test")


def recorded(monkeypatch, *reports: Any) -> tuple[list[proofs.Proof], list[str]]:
    """(what is recorded after these reports, the lines printed)."""
    new: list[proofs.Proof] = []
    monkeypatch.setattr(proofs, "add_proofs", new.extend)
    recorder, lines = Recorder("sm_90", late=False), []
    for one in reports:
        recorder.pytest_runtest_logreport(one)
    recorder.pytest_terminal_summary(SimpleNamespace(write_line=lines.append))
    return new, lines


def test_a_recorder_notes_what_passed_alone(monkeypatch):
    linear, attention = ("linear", "bf16"), ("attention", "bf16")
    reports = report(linear, linear), report(("linear", "fp32")), report(attention), report(attention, failed=True)
    (proof,), lines = recorded(monkeypatch, *reports)
    assert (proof.operation, proof.target, proof.schedule) == ("linear", "sm_90", "usual")
    assert (proof.kinds, proof.samples, proof.tensors, proof.worst) == (("bf16", "fp32"), 3, 6, 0.25)
    assert lines[1] == "not recorded, since a test failed: attention"


def test_a_recorder_counts_a_test_once(monkeypatch):
    """Each of its three reports carries what it found."""
    (proof,), _ = recorded(monkeypatch, *(report(("linear", "bf16"), when=when) for when in ("setup", "call", "teardown")))
    assert proof.samples == 1


def test_a_recorder_notes_nothing_where_a_test_of_no_operation_failed(monkeypatch):
    new, lines = recorded(monkeypatch, report(("linear", "bf16")), report(failed=True, when="call"))
    assert new == []
    assert lines[1] == "not recorded, since a test failed: a test"
