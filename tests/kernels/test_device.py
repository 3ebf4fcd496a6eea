"""What is known of a device, and the same choices on a CPU as on the GPU it is told to act as."""

import importlib.metadata
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastbert.kernels import device as device_module
from fastbert.kernels.attention.config import Problem
from fastbert.kernels.backend import backend_reason, checks_values, use_backend
from fastbert.kernels.device import (
    MULTIPROCESSORS,
    architecture,
    cdiv,
    compiler_fault,
    dot_precision,
    has_wide_matrix_unit,
    index_of,
    is_amd,
    is_gpu,
    is_nvidia,
    is_pretending,
    num_programs,
    pretend,
)
from fastbert.kernels.functional import cross_entropy
from fastbert.kernels.matmul.choose import select_gemm
from fastbert.kernels.matmul.config import GemmConfig
from fastbert.kernels.matmul.keys import OPERATIONS

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


def test_a_cpu_is_none_of_the_gpus():
    assert architecture(CPU) == "cpu"
    assert not is_gpu(CPU)
    assert not is_nvidia("cpu")
    assert not is_amd("cpu")
    assert has_wide_matrix_unit("cpu")
    assert num_programs(CPU, 1) == num_programs(CPU, 8) == 3
    assert index_of(torch.device("cuda", 3)) == 3


def test_a_device_that_is_not_here_is_unknown():
    assert architecture(torch.device("meta")) == "unknown"
    if not torch.cuda.is_available():
        assert architecture(CUDA) == "unknown"
        assert is_gpu(CUDA)
        assert index_of(torch.device("cuda")) == 0


def test_which_architectures_multiply_from_shared_memory():
    assert all(has_wide_matrix_unit(arch) for arch in ("sm_90", "sm_100", "sm_103", "sm_110"))
    assert not any(has_wide_matrix_unit(arch) for arch in ("sm_80", "sm_86", "sm_89", "sm_120", "gfx942"))


@pytest.mark.parametrize("arch", [*MULTIPROCESSORS, "sm_89", "gfx942"])
def test_pretend(arch):
    count = MULTIPROCESSORS.get(arch, 64)
    with pretend(arch, None if arch in MULTIPROCESSORS else count):
        assert is_pretending()
        for device in (CPU, CUDA, torch.device("meta")):
            assert is_gpu(device)
            assert architecture(device) == arch
            assert num_programs(device, 1) == count
            assert num_programs(device, 8) == 8 * count
    assert not is_pretending()
    assert architecture(CPU) == "cpu"


def test_pretend_nests_and_is_undone_after_an_exception():
    with pretend("sm_80"):
        with pretend("sm_90", 7):
            assert (architecture(CPU), num_programs(CPU, 1)) == ("sm_90", 7)
        assert (architecture(CPU), num_programs(CPU, 1)) == ("sm_80", MULTIPROCESSORS["sm_80"])
        with pytest.raises(KeyError), pretend("sm_100"):
            raise KeyError
        assert architecture(CPU) == "sm_80"
        with pytest.raises(ValueError, match="sm_12"), pretend("sm_12"):
            pass
        assert architecture(CPU) == "sm_80"
    assert not is_pretending()


def test_pretend_rejects_an_architecture_of_unknown_size():
    with pytest.raises(ValueError, match=r"among sm_80, sm_90, sm_100, or a number of multiprocessors, got 'gfx942'"):
        with pretend("gfx942"):
            pass
    assert not is_pretending()


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_dot_precision_follows_pytorch(precision):
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = precision
        for arch in ("sm_80", "sm_90", "sm_120", "gfx942"):
            assert dot_precision(torch.float32, arch) == precision
            assert dot_precision(torch.bfloat16, arch) == "ieee"
        for arch in ("cpu", "gfx90a", "unknown"):
            assert dot_precision(torch.float32, arch) == "ieee"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("arch", MULTIPROCESSORS)
def test_matrix_products_are_chosen_as_on_the_gpu(arch):
    with pretend(arch):
        for dtype in (torch.float32, torch.bfloat16):
            for M in (1, 64, 1000, 16384):
                for operation in OPERATIONS:
                    choices = [select_gemm(operation, M, 768, 3072, dtype, device) for device in (CPU, CUDA)]
                    assert choices[0] == choices[1]
                for product in ("fwd", "dgrad", "wgrad"):
                    tiles = [GemmConfig.for_shape(product, M, 768, dtype, device) for device in (CPU, CUDA)]
                    assert tiles[0] == tiles[1]
        assert "interpreter" not in select_gemm("linear", 1000, 768, 3072, torch.bfloat16, CPU).reason


@pytest.mark.parametrize("arch", MULTIPROCESSORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_tiles_are_chosen_for_that_gpu(dtype, arch):
    with pretend(arch), FakeTensorMode():
        for head_dim in (32, 64, 128):
            for max_seqlen in (16, 128, 512):
                shape = (1000, 3, 12, head_dim)
                here, there = (torch.empty(shape, dtype=dtype, device=device) for device in ("cpu", "cuda"))
                problems = [Problem.of(qkv, max_seqlen, 0.1, False) for qkv in (here, there)]
                assert problems[0] == problems[1]
                assert problems[0].target == arch


def test_values_are_not_checked_as_on_a_gpu(monkeypatch):
    monkeypatch.delenv("FASTBERT_DEBUG", raising=False)
    labels = torch.zeros(3, dtype=torch.int64)
    assert checks_values(labels)
    with pretend("sm_90"):
        assert not checks_values(labels)
        monkeypatch.setenv("FASTBERT_DEBUG", "1")
        assert checks_values(labels)


def test_a_bad_value_passes_the_checks(monkeypatch):
    monkeypatch.delenv("FASTBERT_DEBUG", raising=False)
    inputs = (torch.randn(2, 8), torch.randn(5, 8), None, torch.tensor([1, 7]))
    with use_backend("torch"), pytest.raises(ValueError, match=r"labels in \[0, 5\) or -100, got 7"):
        cross_entropy(*inputs)
    with use_backend("torch"), pretend("sm_90"), pytest.raises((IndexError, RuntimeError)):  # PyTorch's own
        cross_entropy(*inputs)


def test_the_kernels_count_as_supported():
    with pretend("sm_90"), use_backend("auto"):
        assert backend_reason(CUDA, torch.float32) == ("triton", "a supported GPU")
        assert backend_reason(CPU, torch.float32)[0] == "torch", "a CPU tensor still needs use_backend('triton')"


def test_cdiv():
    assert [cdiv(x, 4) for x in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("arch", "version", "is_faulty"),
    [
        ("sm_90", "3.6.0", True),
        ("sm_90", "3.7.0", True),
        ("sm_90", "3.7.1", False),
        ("sm_90", "3.10.0", False),
        ("sm_100", "3.6.0", True),
        ("sm_103", "3.7.0", True),
        ("sm_100", "3.7.1", False),
        ("sm_80", "3.6.0", False),
        ("sm_120", "3.6.0", False),
    ],
)
def test_a_triton_that_leaves_out_a_fence_is_told_once(arch, version, is_faulty, monkeypatch):
    major, minor = divmod(int(arch.removeprefix("sm_")), 10)
    properties = SimpleNamespace(name="the card", major=major, minor=minor)
    monkeypatch.setattr(importlib.metadata, "version", {"triton": version}.__getitem__)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.version, "hip", None)
    device_module._architecture.cache_clear()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert architecture(CUDA) == architecture(CUDA) == arch
    finally:
        device_module._architecture.cache_clear()
    assert (compiler_fault(arch) is not None) is is_faulty
    told = [str(one.message) for one in caught]
    assert len(told) == is_faulty
    if is_faulty:
        assert told[0].startswith(f"fastbert on the card: triton {version} leaves out the fence")
        assert "install triton 3.7.1 or newer" in told[0]


def test_without_a_package_of_that_name_no_fault_is_known(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert compiler_fault("sm_90") is None
