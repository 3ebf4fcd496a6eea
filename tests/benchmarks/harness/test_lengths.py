"""Length mixes: in bounds, repeatable, known by name."""

import pytest

from benchmarks.harness import lengths


@pytest.mark.parametrize("mix", list(lengths.mixes()))
def test_length_mixes_stay_in_bounds_and_repeat(mix):
    drawn = lengths.draw(mix, 500, 128, seed=3)
    assert len(drawn) == 500
    assert 1 <= min(drawn) <= max(drawn) <= 128
    assert drawn == lengths.draw(mix, 500, 128, seed=3)
    assert mix == "fixed" or drawn != lengths.draw(mix, 500, 128, seed=4)


def test_an_unknown_length_mix_is_refused():
    with pytest.raises(ValueError, match=r"expected a length mix among .*wiki-qa.*, got 'none'"):
        lengths.draw("none", 1, 128)
