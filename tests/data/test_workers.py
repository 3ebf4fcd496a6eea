"""A map over processes whose workers die."""

import os

import pytest

from fastbert.data.workers import map_in_order


def test_a_worker_that_dies_is_an_error():
    class Die:
        def __reduce__(self):
            return os._exit, (1,)

    results = map_in_order(Die(), ((n, n) for n in range(3)), workers=2)
    with pytest.raises(ChildProcessError, match="fewer workers"):
        list(results)
