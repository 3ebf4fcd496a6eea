"""The record of proofs, written at the end of a run from what its tests found (fastbert/verification/proofs.py)."""

from collections import defaultdict

import pytest

from tests.compiled.judging import PROPERTY


class Recorder:
    """A plugin of pytest. It learns of the tests from their reports, which xdist brings together from its workers.

    An operation is recorded where every test of its samples passed, an older proof of it stays otherwise; nothing is where a
    test failed that is not of one operation.
    """

    def __init__(self, target: str, late: bool) -> None:
        self.target, self.schedule = target, "late" if late else "usual"
        self.samples: dict[str, list[dict]] = defaultdict(list)  # of each operation
        self.failed: set[str] = set()  # operations, and tests that are of none

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = [sample for name, samples in report.user_properties if name == PROPERTY for sample in samples]
        if report.failed:  # in the call, or where findings of the emulator are looked at, after it
            self.failed |= {sample["operation"] for sample in found} or {report.nodeid}
        elif report.when == "teardown":
            for sample in found:
                self.samples[sample["operation"]].append(sample)

    def pytest_terminal_summary(self, terminalreporter) -> None:
        import triton

        from fastbert.kernels.specs.registry import ALL_SPECS
        from fastbert.verification.proofs import FILE, Proof, add_proofs, digest_of

        new = []
        whole = self.failed <= {spec.name for spec in ALL_SPECS}
        for spec in ALL_SPECS:
            samples = self.samples[spec.name]
            if not whole or not samples or spec.name in self.failed:
                continue
            new.append(
                Proof(
                    spec.name,
                    self.target,
                    self.schedule,
                    tuple(sorted({sample["kind"] for sample in samples})),
                    len(samples),
                    sum(sample["tensors"] for sample in samples),
                    round(max(sample["worst"] for sample in samples), 3),
                    triton.__version__,
                    digest_of(spec),
                )
            )
        if new:
            add_proofs(new)
        names = ", ".join(proof.operation for proof in new) or "nothing"
        terminalreporter.write_line(f"recorded for {self.target} in {FILE}: {names}")
        if self.failed:
            terminalreporter.write_line(f"not recorded, since a test failed: {', '.join(sorted(self.failed))}")
