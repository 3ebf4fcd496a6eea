"""Every kernel test runs the Triton side, on memory that starts as NaN, so that a store that is missing fails."""

import importlib.util
from collections.abc import Iterator

import pytest
import torch

from fastbert.kernels.backend import use_backend

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header() -> str | None:
    return "kernel tests left out: Triton is not installed" if importlib.util.find_spec("triton") is None else None


@pytest.fixture(autouse=True)
def _triton_on_poisoned_memory(triton_device: torch.device) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    # In this mode PyTorch fills fresh memory with NaN (torch.utils.deterministic.fill_uninitialized_memory).
    torch.use_deterministic_algorithms(True, warn_only=True)
    with use_backend("triton"):
        yield
    torch.use_deterministic_algorithms(before)
