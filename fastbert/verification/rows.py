"""The rows of a report: what was compared, and how far it was from what is allowed."""

from dataclasses import dataclass

from fastbert.kernels.specs.accuracy import Accuracy

GRADIENT_FACTOR = 3.0  # gradients sum over all tokens


@dataclass(frozen=True)
class Row:
    """One line of the report.

    section: 'weights', 'hidden states', 'outputs', 'gradients', 'heads' or 'kernels'. where: layer, head or operation.
    worst: the accuracy nearest to its limit, or furthest beyond it, among `count` compared tensors. proved: of a kernel that
    passed, where it was found right: 'interpreter' or 'this GPU', now, and what proofs.py says was recorded of these sources.
    earlier: what was recorded of earlier ones. A row that failed has neither.
    """

    section: str
    where: str
    worst: Accuracy
    count: int
    proved: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return self.worst.passed


def worst_of(accuracies: list[Accuracy]) -> Accuracy:
    """The one that uses the largest share of its limit; a failed one before all others."""

    def used(accuracy: Accuracy) -> float:
        if not accuracy.passed:
            return float("inf")
        return accuracy.error / accuracy.allowed if accuracy.allowed else 0.0

    return max(accuracies, key=used)
