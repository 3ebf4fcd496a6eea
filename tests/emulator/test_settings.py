"""The emulator's face: settings that come back, statistics that begin anew, and when it refuses to be active."""

import numpy as np
import pytest

from tests.emulator.report import Stats
from tests.emulator.settings import Settings, settings
from tests.emulator.tiny_kernels import run, words

triton = pytest.importorskip("triton")


def test_changed_settings_come_back() -> None:
    own = Settings()

    def fail() -> None:
        with own.changed(late_products=True, longest_run=7):
            assert (own.late_products, own.longest_run, own.checks_shared) == (True, 7, False)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert own == Settings()
    with (
        pytest.raises(ValueError, match=r"expected settings among .*'late_products'.*, got \['slow'\]"),
        own.changed(slow=True),
    ):
        pass
    assert settings == Settings()


def test_statistics_begin_anew() -> None:
    stats = Stats()
    stats.kernel("a").launches = 3
    stats.launches = 3
    stats.report.note("something")
    stats.reset()
    assert stats == Stats()


def test_counts_are_of_what_was_executed() -> None:
    x, y = words(), words()
    stats, report = run("ld.global.b32 %r4, [%a8];\nst.global.b32 [%a9], %r4;\n", x, y, blocks=1)
    assert stats.counts == {"global load of 4 bytes": 64, "global store of 4 bytes": 64}
    assert stats.features == set()
    assert not report.notes
    assert not report.unwritten
    assert (y == np.arange(64)).all()


def test_emulator_needs_compiled_kernels_of_a_known_target(monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.emulator import activate

    with pytest.raises(ValueError, match="expected an architecture among 80, 86, 89, 90, got 75"):
        activate(75)
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    with pytest.raises(RuntimeError, match="expected TRITON_INTERPRET=0, got the interpreter"):
        activate(80)


def test_what_is_installed_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from triton.compiler import CompiledKernel

    from fastbert.kernels.device import is_pretending
    from tests.emulator import install

    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    before = torch.empty, torch.Tensor.new_empty, triton.runtime.driver._active, CompiledKernel._init_handles
    with install(90):
        assert triton.runtime.driver.active.get_current_target().arch == 90
        assert is_pretending()
        assert torch.empty(3).isnan().all()
        assert torch.zeros(3).new_empty(2, dtype=torch.bfloat16).isnan().all()
        assert torch.empty(5, dtype=torch.uint8).shape == (5,)
    assert before == (torch.empty, torch.Tensor.new_empty, triton.runtime.driver._active, CompiledKernel._init_handles)
    assert not is_pretending()
