"""Random shapes, options and values per operation; `--fuzz N` sets how many of each."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastbert.kernels.specs.registry import ALL_SPECS
from tests.kernels.harness import DTYPES, compare

DEFAULT_CASES = 200  # over all operations, a few hundred with the interpreter in about two minutes


@pytest.mark.parametrize("spec", [pytest.param(spec, id=spec.name) for spec in ALL_SPECS])
def test_random_inputs_match_float64(spec, device, request):
    if reason := spec.unsupported_reason(device):
        pytest.skip(reason)
    cases = request.config.getoption("--fuzz")

    @settings(
        max_examples=max(1, DEFAULT_CASES // len(ALL_SPECS)) if cases is None else cases,
        deadline=None,
        derandomize=cases is None,  # the suite is repeatable; a longer hunt starts somewhere new
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(DTYPES))
    def check(seed, dtype):
        sample = spec.fuzz(random.Random(seed))
        try:
            compare(spec, sample.make(dtype, device), dtype)
        except Exception as error:
            raise AssertionError(f"{spec.name}: fuzz(random.Random({seed})) = {sample.name} in {dtype}: {error}") from error

    check()
