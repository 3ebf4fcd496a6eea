"""torch.compile as a contender."""

import pytest

from benchmarks.harness.arena import Absent
from benchmarks.peers.compiled import Compilation


def test_an_inactive_compilation_is_no_contender():
    compilation = Compilation("default", ("default",))
    with pytest.raises(RuntimeError, match="no graph"):
        compilation.proof()
    with pytest.raises(Absent, match="no compilation"):
        Compilation("default", ())
