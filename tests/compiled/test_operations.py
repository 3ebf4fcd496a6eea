"""Every operation through its compiled kernels, forward and backward, against float64; each kernel of it runs."""

from itertools import product

import pytest
import torch

from fastbert.kernels.matmul.choose import Gemm, use_gemm
from fastbert.kernels.specs.accuracy import check_operation
from fastbert.kernels.specs.registry import ALL_SPECS
from fastbert.kernels.specs.spec import OperationSpec, Sample
from tests.compiled.plan import ELSEWHERE, KINDS, Kind, kernels_of, kinds_of, share, targets_of, variants_of

CPU = torch.device("cpu")
Run = tuple[Sample, Gemm]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("spec", ALL_SPECS, ids=lambda spec: spec.name)
def test_matches_float64(spec: OperationSpec, kind: Kind, target, full, judge):
    if target not in targets_of(spec) or kind not in kinds_of(spec):
        pytest.skip(f"{spec.name} ships no kernel for {kind} on sm_{target}")
    wanted = kernels_of(spec, kind, target) - ELSEWHERE
    first, others = runs(spec, kind, target, full)
    for sample, side in (*first, *others):
        if (sample, side) in others and wanted <= judge.launched:
            break
        with kind.chosen(), use_gemm(side):
            judge.check(
                spec.name,
                kind.name,
                name_of((sample, side)),
                lambda: check_operation(spec, sample.make(kind.dtype, CPU), kind.dtype),  # noqa: B023 (called at once)
            )
    judge.verdict(wanted)


def name_of(run: Run) -> str:
    sample, side = run
    return f"{sample.name} ({side})"


def runs(spec: OperationSpec, kind: Kind, target: int, full: bool) -> tuple[list[Run], list[Run]]:
    """(what runs, what runs after it until every kernel did): samples, and who computes matrix products in them.

    Triton does where it may. With the library some kernels stand alone that a product holds otherwise.
    """
    multiplies = any(".matmul." in variant.kernel.fn.__module__ for variant in variants_of(spec))
    by_triton: list[Run] = [(sample, "triton") for sample in spec.samples]
    by_library: list[Run] = [(sample, "library") for sample in spec.samples if multiplies]
    if full:
        return by_triton + by_library, []
    first = share(by_triton, list(product(targets_of(spec), kinds_of(spec))), (target, kind))
    return first, by_library + [run for run in by_triton if run not in first]
