"""The record of proofs, written at the end of a run from what its tests found (fastbert/verification/proofs.py)."""

from collections import defaultdict
from pathlib import Path

import pytest

from tests.compiled.judging import PROPERTY

FOLDER = Path(__file__).resolve().parent
DESELECTED = "proofs_deselected"  # of what an xdist worker hands over at its end: how many tests it left out


class Worker:
    """A plugin of xdist's workers, which alone see what is deselected."""

    def __init__(self, config: pytest.Config) -> None:
        self._output = config.workeroutput  # type: ignore[attr-defined]  # xdist's
        self._output[DESELECTED] = 0

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self._output[DESELECTED] += len(items)


class Recorder:
    """A plugin of pytest. It learns of the tests from their reports, which xdist brings together from its workers.

    Only a run of the whole folder with --full, to its end, is recorded, and of it each operation whose every run passed.
    Nothing is where a test failed that is not of one operation. What failed loses an older proof in any case.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.target: str = config.getoption("--compiled")
        self.samples: dict[str, list[dict]] = defaultdict(list)  # of each operation
        self.failed: set[str] = set()  # operations, and tests and files that are of none
        self.partial: list[str] = []  # why this is not a whole run
        if not config.getoption("--full"):
            self.partial.append("no --full")
        if not any((config.invocation_params.dir / arg).resolve() in (FOLDER, *FOLDER.parents) for arg in config.args):
            self.partial.append(f"a part of {FOLDER.name}")
        if config.getoption("--ignore", None) or config.getoption("--ignore-glob", None):
            self.partial.append("files ignored")
        if config.getoption("--last-failed", False):  # leaves files out without a word of deselection
            self.partial.append("--last-failed")

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        self._deselect(len(items))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node, error) -> None:
        """Of xdist: a worker ended, or was lost."""
        if error:
            self.partial.append("a worker lost")
        else:
            self._deselect(getattr(node, "workeroutput", {}).get(DESELECTED, 0))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = [sample for name, samples in report.user_properties if name == PROPERTY for sample in samples]
        if report.failed:  # in the call, or where findings of the emulator are looked at, after it
            self.failed |= {sample["operation"] for sample in found} or {report.nodeid}
        elif report.when == "teardown":
            for sample in found:
                self.samples[sample["operation"]].append(sample)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) or session.shouldstop or session.shouldfail:
            self.partial.append("not run to its end")

    def pytest_terminal_summary(self, terminalreporter) -> None:
        from fastbert.kernels.specs.registry import ALL_SPECS
        from fastbert.verification.proofs import FILE, Proof, add_proofs

        operations = {spec.name for spec in ALL_SPECS}
        new: list[Proof] = []
        if self.partial:
            wanted = f"expected the whole of {FOLDER.name} with --full"
            terminalreporter.write_line(f"no proof recorded: {wanted}, got a run with {', '.join(self.partial)}")
        elif self.failed <= operations:
            new, incomplete = self._proofs(ALL_SPECS)
            for line in incomplete:
                terminalreporter.write_line(f"not recorded: {line}")
        failed = {(name, self.target) for name in self.failed & operations}
        if new or failed:
            add_proofs(new, failed)
        if not self.partial:
            names = ", ".join(proof.operation for proof in new) or "nothing"
            terminalreporter.write_line(f"recorded for {self.target} in {FILE}: {names}")
        if self.failed:
            terminalreporter.write_line(f"not recorded, since a test failed: {', '.join(sorted(self.failed))}")

    def _deselect(self, count: int) -> None:
        if count and "tests deselected" not in self.partial:
            self.partial.append("tests deselected")

    def _proofs(self, specs) -> tuple[list, list[str]]:
        """(the proof of each operation whose every run passed, a line for each other that did not fail)."""
        import triton

        from fastbert.verification.proofs import Proof, digest_of, digest_of_runs
        from tests.compiled.complete import complete

        new, incomplete = [], []
        for spec in specs:
            wanted, samples = complete(spec, int(self.target.removeprefix("sm_"))), self.samples[spec.name]
            passed = {(sample["kind"], sample["sample"]) for sample in samples}
            if spec.name in self.failed or not wanted:
                continue
            if passed != wanted:
                both = len(passed & wanted)
                incomplete.append(f"{spec.name}, expected {len(wanted)} runs, got {both} and {len(passed) - both} others")
                continue
            proof = Proof(
                operation=spec.name,
                target=self.target,
                kinds=tuple(sorted({sample["kind"] for sample in samples})),
                runs=len(passed),
                runs_digest=digest_of_runs(passed),
                tensors=sum(sample["tensors"] for sample in samples),
                worst=round(max(sample["worst"] for sample in samples), 3),
                triton=triton.__version__,
                sources=digest_of(spec),
            )
            new.append(proof)
        return new, incomplete
