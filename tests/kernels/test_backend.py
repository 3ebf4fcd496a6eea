"""The choice between kernels and PyTorch: what decides, what is refused, when values are read."""

import os
import subprocess
import sys

import numpy
import pytest
import torch
import triton
from torch._subclasses.fake_tensor import FakeTensorMode

from fastbert.kernels import backend, fp8
from fastbert.kernels.backend import (
    autocast_dtype,
    backend_reason,
    checks_values,
    interpreter_unsupported_reason,
    records_portably,
    resolve_backend,
    use_backend,
)

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


def test_cpu_tensors_run_in_pytorch_unless_forced():
    with use_backend("auto"):
        assert backend_reason(CPU, torch.float32) == ("torch", "tensors are on the CPU")
    with use_backend("torch"):
        assert backend_reason(CPU, torch.float32) == ("torch", "forced")
        assert backend_reason(CUDA, torch.float64) == ("torch", "forced")


def test_a_forced_backend_that_cannot_run_raises(monkeypatch):
    with use_backend("triton"):
        with pytest.raises(RuntimeError, match="forced, but the kernels take float32, float16 and bfloat16, not float64"):
            backend_reason(CPU, torch.float64)
        with pytest.raises(RuntimeError, match="does not support device type 'meta'"):
            backend_reason(torch.device("meta"), torch.float32)
        monkeypatch.setattr(backend, "_interpreting", False)
        with pytest.raises(RuntimeError, match=r"interpreter is off \(TRITON_INTERPRET=1\)"):
            backend_reason(CPU, torch.float32)
        monkeypatch.setattr(backend, "_triton_installed", False)
        with pytest.raises(RuntimeError, match="Triton is not installed"):
            backend_reason(CUDA, torch.float32)


def test_use_backend_nests_and_is_undone_after_an_exception():
    with use_backend("auto"):
        with use_backend("torch"):
            assert backend_reason(CPU, torch.float32)[1] == "forced"
        with pytest.raises(KeyError), use_backend("torch"):
            raise KeyError
        assert backend_reason(CPU, torch.float32)[1] != "forced"
        with pytest.raises(ValueError, match="the backend must be 'auto', 'torch' or 'triton', got 'cuda'"):
            with use_backend("cuda"):  # type: ignore[arg-type]
                pass


def test_the_environment_variable_is_checked():
    result = subprocess.run(
        [sys.executable, "-c", "import fastbert.kernels"],
        env=os.environ | {"FASTBERT_BACKEND": "cuda"},
        capture_output=True,
        text=True,
    )
    assert "the environment variable FASTBERT_BACKEND must be 'auto', 'torch' or 'triton', got 'cuda'" in result.stderr


@pytest.mark.parametrize(("major", "minor", "old"), [(7, 5, True), (8, 0, False), (9, 0, False)])
def test_an_old_gpu_runs_pytorch(major, minor, old, monkeypatch):
    class Properties:
        name = "A card"

    Properties.major, Properties.minor = major, minor
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(torch.version, "hip", None)
    device = torch.device("cuda")  # without an index nothing is cached
    reason = f"A card has compute capability {major}.{minor}, the kernels need 8.0"
    with use_backend("auto"):
        expected = ("torch", reason) if old else ("triton", "a supported GPU")
        assert backend_reason(device, torch.bfloat16) == expected
    assert (fp8.unsupported_reason(device) is None) is (major >= 9)


def test_fp8_is_emulated_on_a_cpu_and_missing_elsewhere(monkeypatch):
    assert fp8.unsupported_reason(CPU) is None
    assert "NVIDIA's e4m3" in fp8.unsupported_reason(torch.device("meta"))
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert "NVIDIA's e4m3" in fp8.unsupported_reason(CUDA)


@pytest.mark.parametrize(
    ("triton_version", "numpy_version", "works"),
    [("3.6.0", "2.3.5", True), ("3.6.0", "2.4.0", False), ("3.7.0", "2.4.0", True)],
)
def test_which_versions_the_interpreter_runs_with(triton_version, numpy_version, works, monkeypatch):
    monkeypatch.setattr(triton, "__version__", triton_version)
    monkeypatch.setattr(numpy, "__version__", numpy_version)
    reason = interpreter_unsupported_reason()
    assert reason is None if works else "install triton>=3.7 or numpy<2.4" in reason


def test_graphs_for_elsewhere_record_pytorch():
    x = torch.ones(2)
    seen = []

    def traced(x):
        seen.append(records_portably())
        with use_backend("auto"):
            seen.append(resolve_backend(x))
        with pytest.raises(RuntimeError, match=r"torch\.jit\.trace and ONNX record PyTorch's operations only"):
            resolve_backend(x)
        return x + 1

    torch.jit.trace(traced, x, check_trace=False)
    assert seen == [True, "torch"]
    assert not records_portably()


def test_functorch_transforms_run_pytorch(device):
    def choose(x):
        with use_backend("auto"):
            assert resolve_backend(x) == "torch"
        assert resolve_backend(x) == "triton", "a forced backend stays"
        assert not checks_values(x)
        return x * 2

    assert torch.vmap(choose)(torch.ones(3, 2, device=device)).eq(2).all()


def test_values_are_read_where_there_are_any():
    x = torch.ones(3)
    assert checks_values(x)
    assert not checks_values(torch.ones(3, device="meta"))
    with FakeTensorMode():
        assert not checks_values(torch.ones(3))


def test_autocast_dtype():
    x = torch.ones(3)
    assert autocast_dtype(x) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert autocast_dtype(x) is torch.bfloat16
    assert autocast_dtype(torch.ones(3, device="meta")) is None
