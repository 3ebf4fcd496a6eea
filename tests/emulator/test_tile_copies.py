"""Copies of whole tiles: what they may touch in a storage of which the kernel was given a part."""

import numpy as np
import pytest

from tests.emulator.compiled import Compiled
from tests.emulator.faults import Fault
from tests.emulator.machine import launch
from tests.emulator.memory import Allocation
from tests.emulator.report import KernelStats, Report
from tests.emulator.tensor_map import TensorMap

ROWS, COLUMNS = 8, 32  # of one box, of float32
BESIDE = "x outside of the tensor given, inside its storage"
STORE = """st.shared.b32 [%r1], %r0;
fence.proxy.async.shared::cta;
bar.sync 0;
@%p0 cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%a0, {0, %r2}], [0];
@%p0 cp.async.bulk.commit_group;
@%p0 cp.async.bulk.wait_group.read 0;"""
LOAD = """@%p0 mbarrier.init.shared::cta.b64 [1024], 1;
bar.sync 0;
@%p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [1024], 1024;
@%p0 cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [0], [%a0, {0, %r2}], [1024];"""


def run(body: str, storage: np.ndarray, given: slice, row: int) -> Report:
    """One tile copy at this row of a map of the whole storage, of which the kernel was given these rows."""
    ptx = (
        ".version 8.7\n.target sm_90a\n.address_size 64\n.visible .entry tiny(\n.param .align 64 .b8 map[128]\n)\n"
        ".reqntid 256\n{\n.reg .pred %p<2>;\n.reg .b32 %r<4>;\n.reg .b64 %a<2>;\n"
        "mov.u32 %r0, %tid.x;\nshl.b32 %r1, %r0, 2;\nsetp.eq.u32 %p0, %r0, 0;\n"
        f"mov.b64 %a0, map;\nmov.u32 %r2, {row};\n{body}\nret;\n}}\n"
    )
    base, part = storage.ctypes.data, storage[given]
    viewed = (part.ctypes.data, part.ctypes.data + part.nbytes)
    whole = TensorMap(base, 0, 4, 7, (ROWS, COLUMNS), storage.shape, (COLUMNS, 1), 0)
    report = Report()
    allocation = Allocation(base, storage.nbytes, "x", viewed)
    launch(Compiled(ptx, 256), (1, 1, 1), bytes(128), [allocation], 1152, {0: whole}, KernelStats(), report)
    return report


@pytest.fixture
def storage() -> np.ndarray:
    return np.zeros((32, COLUMNS), np.float32)


def test_store_within_the_tensor_given(storage):
    report = run(STORE, storage, slice(8, 24), 16)
    assert (storage[16:24].view(np.uint32).reshape(-1) == np.arange(256)).all()
    assert not storage[:16].any()
    assert not report.notes


@pytest.mark.parametrize("row", [0, 7, 17, 24])
def test_store_beside_the_tensor_given(storage, row):
    with pytest.raises(Fault, match=f"writes {BESIDE}"):
        run(STORE, storage, slice(8, 24), row)
    assert not storage.any()


def test_load_beside_the_tensor_given_is_noted(storage):
    assert not any(BESIDE in note for note in run(LOAD, storage, slice(8, 24), 8).notes)
    assert any(f"reads {BESIDE}" in note for note in run(LOAD, storage, slice(8, 24), 17).notes)
