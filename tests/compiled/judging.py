"""What one test of compiled kernels found, sample by sample: judged once, at its end, and noted for the record of proofs."""

import traceback
from collections.abc import Callable, Iterable
from types import ModuleType

import pytest

from fastbert.kernels.specs.accuracy import Accuracy

PROPERTY = "proofs"  # of a test's report: what pytest gives the process that writes the record


class Judge:
    """Runs samples and collects what fails, so that one wrong sample does not hide the next."""

    def __init__(self, emulator: ModuleType, record_property: Callable[[str, object], None]) -> None:
        self._emulator, self._record_property = emulator, record_property
        self._failures: list[str] = []
        self._proofs: list[dict[str, object]] = []

    @property
    def launched(self) -> set[str]:
        """The names of the kernels that ran so far."""
        return set(self._emulator.stats.kernels)

    def check(self, operation: str, kind: str, sample: str, run: Callable[[], Iterable[Accuracy]]) -> None:
        """One sample of an operation. run: launches the kernels, and says how accurate each tensor is."""
        try:
            accuracies = list(run())
        except Exception as error:  # of the emulator, the compiler or the launch: each is a failure of this sample
            where = "" if isinstance(error, self._emulator.Fault) else "".join(traceback.format_tb(error.__traceback__)[-2:])
            self._failures.append(f"{operation} {kind} {sample}: {type(error).__name__}: {error}\n{where}")
            accuracies = []
        self._failures += [f"{operation} {kind} {sample}: {one}" for one in accuracies if not one.passed]
        worst = max((one.error / one.allowed for one in accuracies if one.allowed), default=0.0)
        found = {"operation": operation, "kind": kind, "sample": sample, "tensors": len(accuracies), "worst": worst}
        self._proofs.append(found)

    def verdict(self, wanted: Iterable[str] = ()) -> None:
        """Fails with every sample that failed, and with every kernel of `wanted` that was never launched."""
        failures = self._failures + [f"{name} was never launched" for name in sorted(set(wanted) - self.launched)]
        self._record_property(PROPERTY, self._proofs)
        if failures:
            pytest.fail(f"{len(failures)} failures\n" + "\n".join(failures), pytrace=False)
