"""What a whole run with --full passes of one operation: what a proof of it has to hold."""

from fastbert.kernels.specs.spec import OperationSpec
from tests.compiled import test_operations, test_products
from tests.compiled.plan import kinds_of, targets_of


def complete(spec: OperationSpec, target: int) -> set[tuple[str, str]]:
    """Every run of an operation on one target, by its kind of numbers and its name; none where no kernel of it ships there."""
    if target not in targets_of(spec):
        return set()
    samples = {
        (kind.name, test_operations.name_of(run))
        for kind in kinds_of(spec)
        for run in test_operations.runs(spec, kind, target, True)[0]
    }
    return samples | {
        (kind.name, test_products.name_of(tile))
        for kind in kinds_of(spec)
        for tile in test_products.tiles(kind, target)
        if test_products.SPECS[tile[0]] == spec.name
    }
