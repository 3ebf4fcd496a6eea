"""The conditions of a run: device, driver, clocks, versions, command, commit."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "sentence-transformers",
    "numpy",
    "pytest-benchmark",
    "flash-attn",
    "liger-kernel",
    "quack-kernels",
    "cut-cross-entropy",
    "onnxruntime",
    "onnxruntime-gpu",
)
NVIDIA_SMI = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu,memory.total"
ROOT = Path(__file__).parents[2]


def conditions(seed: int = 0) -> dict[str, Any]:
    """Everything by name, JSON types only; 'unknown (why)' where the machine does not say."""
    on_gpu = torch.cuda.is_available()
    found: dict[str, Any] = {
        "device_type": "cuda" if on_gpu else "cpu",
        "device": torch.cuda.get_device_name() if on_gpu else cpu_name(),
        "versions": {"python": platform.python_version(), "fastbert": _own_version()} | _versions(),
        "command": command(),
        "commit": _output("git", "rev-parse", "HEAD"),
        "dirty": bool(_output("git", "status", "--porcelain", "--untracked-files=no")),
        "seed": seed,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if on_gpu:
        values = _output("nvidia-smi", f"--query-gpu={NVIDIA_SMI}", "--format=csv,noheader").split(", ")
        smi = dict(zip(NVIDIA_SMI.split(","), values))
        found["driver"] = smi.pop("driver_version", values[0])
        found["clocks"] = smi
        found["cuda"] = torch.version.cuda or f"HIP {torch.version.hip}"
        found["multiprocessors"] = torch.cuda.get_device_properties(0).multi_processor_count
    return found


def command() -> str:
    """The command line of this process as one would type it in the project's folder."""
    first, *rest = sys.argv
    program = [Path(first).name]
    if Path(first).name == "__main__.py":
        program = ["python", "-m", Path(first).parent.name]
    elif Path(first).suffix == ".py":
        program = ["python", first]
    return " ".join([*program, *rest]).replace(f"{ROOT}/", "")


def clocks_now() -> str:
    """Clocks, power and temperature of the GPU at this moment."""
    return _output("nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu", "--format=csv,noheader")


def cpu_name() -> str:
    """The processor's name and its instruction set, as PyTorch uses it."""
    capability = torch.backends.cpu.get_cpu_capability()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name} ({capability})"


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _own_version() -> str:
    from fastbert.version import __version__

    return __version__


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True, cwd=ROOT).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({type(error).__name__})"
