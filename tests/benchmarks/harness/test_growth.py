"""The fitted exponents: of exact power laws, of what is none, of the scaling suite."""

from dataclasses import replace

import pytest

from benchmarks.harness.growth import slope, slope_table
from benchmarks.harness.records import ABSENT, Contender, Row
from tests.benchmarks.records import SCALING, cells_of, timed


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.83, 2.0])
def test_slope_of_a_power_law_is_its_exponent(exponent):
    found, misfit = slope([(x, 3e-4 * x**exponent) for x in (16, 128, 384, 512)])
    assert found == pytest.approx(exponent, abs=1e-9)
    assert misfit == pytest.approx(0, abs=1e-9)


def test_slope_tells_what_is_no_power_law():
    assert slope([(1, 1.0), (2, 1.0), (4, 16.0)])[1] > 0.5


@pytest.mark.parametrize("points", [[(8, 1.0)], [(8, 1.0), (8, 2.0)], [(8, 1.0), (16, 0.0)], []])
def test_slope_needs_two_different_x(points):
    with pytest.raises(ValueError, match="expected positive points"):
        slope(points)


@pytest.mark.parametrize("with_details", [True, False])
def test_slopes_of_the_scaling_suite_with_and_without_the_axis_in_the_details(with_details):
    rows = []
    for seqlen in (128, 256, 512):
        details = {"axis": "seqlen", "value": seqlen} if with_details else {}
        case = replace(SCALING, seqlen=seqlen, real_tokens=4 * seqlen, padded_tokens=4 * seqlen)
        fused = timed("fastbert", 1e-6 * seqlen**2, peak_bytes=1000 * seqlen, details=details)
        rows.append(Row(case, (fused, Contender("gone", ABSENT, "not there", details=details))))
    rows.append(Row(replace(SCALING, model="bert-large"), (timed("fastbert", 1.0),)))
    text = slope_table(rows)
    fused = cells_of(text, "fastbert", "seqlen")
    assert fused[3:6] == ["128 - 512", "n^2.00 (3 points)", "n^1.00 (3 points)"]
    assert cells_of(text, "gone", "seqlen")[4] == "not measured"
    assert "1 rows have no second value" in text
