"""What every operation must satisfy, generated from the specs: float64, gradients, determinism, registration."""

from dataclasses import replace

import pytest
import torch

from fastbert.kernels.specs.registry import ALL_SPECS
from tests.compiled.plan import variants_of
from tests.kernels.harness import DTYPES, as_list, compare, forward_backward, random_gradient, random_gradient_rounded_to

CASES = [pytest.param(spec, sample, id=f"{spec.name}-{sample.name}") for spec in ALL_SPECS for sample in spec.samples]
BY_SPEC = [pytest.param(spec, id=spec.name) for spec in ALL_SPECS]


@pytest.fixture(autouse=True)
def _runs_here(spec, device):
    if reason := spec.unsupported_reason(device):
        pytest.skip(reason)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize(("spec", "sample"), CASES)
def test_matches_float64_and_does_not_depend_on_the_run(spec, sample, dtype, device):
    """A second run gives the same bits, and so does an output without gradients, for whose backward nothing is saved."""
    inputs, calls = sample.make(dtype, device), []

    def function(**arguments):
        out = spec.function(**arguments)
        calls.append((arguments, out))
        return out

    compare(replace(spec, function=function), inputs, dtype)
    [(arguments, out)] = calls  # of the run that was compared
    if dtype == torch.float32:
        with torch.no_grad():
            assert torch.equal(spec.function(**inputs), out)
    else:
        differentiable = tuple(name for name in spec.differentiable if name in inputs)
        again = forward_backward(spec.function, inputs, differentiable, None, random_gradient_rounded_to(dtype))
        leaves = [leaf for name in differentiable for leaf in as_list(arguments[name]) if leaf is not None]
        assert torch.equal(again.pop("out"), out)
        assert len(again) == len(leaves)
        for (name, value), leaf in zip(again.items(), leaves):
            assert torch.equal(value, leaf.grad), f"{name} differs between two runs on the same inputs"


@pytest.mark.parametrize("dy", ["ones", "radial"])
@pytest.mark.parametrize("spec", BY_SPEC)
def test_structured_gradients_match_float64(spec, dy, device):
    """Noise hides cancellation: a constant gradient and one along the output do not."""
    exact_out = {}

    def structured(out):
        if dy == "ones":
            return torch.ones_like(out)
        # One gradient for the three runs: along the first run's output, rounded to its dtype.
        return exact_out.setdefault("out", out.detach().clone()).to(out.dtype)

    for sample in spec.samples[:3]:
        exact_out.clear()
        compare(spec, sample.make(torch.float32, device), torch.float32, structured)


@pytest.mark.parametrize("spec", BY_SPEC)
def test_only_requested_gradients(spec, device):
    """Each input alone may need a gradient; the others get none and cost none."""
    dtype = torch.float32
    for name in spec.differentiable:
        sample = next((s for s in spec.samples if name in s.make(dtype, device)), None)
        assert sample is not None, f"no sample of {spec.name} has {name}"
        inputs = sample.make(dtype, device)
        alone = forward_backward(spec.function, inputs, (name,), None, random_gradient)
        everything = forward_backward(
            spec.function, inputs, tuple(n for n in spec.differentiable if n in inputs), None, random_gradient
        )
        assert {"out", *(key for key in everything if key.rstrip("0123456789") == f"d{name}")} == set(alone)
        for key, value in alone.items():
            largest = max([1.0, *everything[key].abs().flatten().tolist()])  # sums may be cut otherwise: they round as it does
            torch.testing.assert_close(value, everything[key], rtol=1e-5, atol=1e-6 * largest)


@pytest.mark.parametrize("spec", BY_SPEC)
def test_flops_bytes_and_workload(spec):
    from fastbert.kernels.specs.spec import Workload

    work = Workload(hidden_size=128, num_heads=2, intermediate_size=256, vocab_size=300, seqlens=(16, 5, 30))
    inputs = spec.workload(work, torch.float32, torch.device("cpu"))
    assert spec.function(**inputs).isfinite().all() if not torch.cuda.is_available() else True
    for backward in (False, True):
        assert spec.flops(inputs, backward) > 0
        assert spec.bytes_moved(inputs, backward) > 0
    assert variants_of(spec), "no variant to compile ahead of time"


@pytest.mark.parametrize("spec", BY_SPEC)
def test_baseline_and_prepared_inputs_give_the_same_output(spec, device):
    from fastbert.kernels.specs.spec import Workload

    work = Workload(hidden_size=128, num_heads=2, intermediate_size=256, vocab_size=300, seqlens=(16, 5, 30))
    inputs = spec.workload(work, torch.float32, device)
    baseline = spec.build_baseline(inputs)
    with torch.no_grad():
        out, expected = spec.function(**spec.prepare(inputs)), baseline.function(**baseline.inputs)
    expected = expected if baseline.kept is None else expected[baseline.kept]
    assert (out - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("spec", BY_SPEC)
def test_only_differentiable_operations_have_a_backward_to_time(spec):
    assert "forward" in spec.directions
    assert spec.differentiable or spec.directions == ("forward",)
