"""Whether a library of the field can take part."""

import importlib.util

import torch

from benchmarks.harness.arena import Absent


def need_on_gpu(module: str, device: torch.device) -> None:
    """Raises Absent where the module is not installed or the device is no GPU."""
    if importlib.util.find_spec(module) is None:
        raise Absent(f"{module} is not installed")
    if device.type != "cuda":
        raise Absent(f"{module} needs a GPU")
