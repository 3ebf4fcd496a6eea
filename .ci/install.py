"""What `make demo`, `make test` and `make release` install into a virtual environment: fastbert from this folder, editable.

    VENV/bin/python .ci/install.py [--torch BUILD] EXTRA...

pip takes torch from PyPI, whose builds for Linux bring CUDA along. Without an NVIDIA driver those 2.5 GB are of no use: there
torch alone is installed by uv, which knows where PyTorch keeps its other builds, and pip installs the rest. A CPU build that
pip finds by its own configuration is taken as it is. Only the standard library is imported: nothing is installed yet.
"""

from __future__ import annotations  # so that an older Python gets as far as being told

import argparse
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST_PYTHON = (3, 10)
# Sums of the files that PyPI offered on 2026-11-29 for torch 2.13.0, Linux on x86-64, Python 3.12.
WITH_CUDA, ON_CPU = "2.5 GB", "0.2 GB"
PIP = (sys.executable, "-m", "pip")
DRIVER = Path("/proc/driver/nvidia/version")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("extras", nargs="+", metavar="EXTRA")
    parser.add_argument(
        "--torch", default="auto", metavar="BUILD", help="auto, pip (what pip finds), or a backend of uv's, as cpu or cu130"
    )
    options = parser.parse_args(arguments)
    if sys.version_info < OLDEST_PYTHON:
        found = ".".join(map(str, sys.version_info[:2]))
        raise SystemExit(f"expected Python 3.10 or newer, got {found}: make PYTHON=python3.12, say")
    build = chosen_build(options.torch)
    if build is not None:
        status = install_torch(build)
        if status and options.torch != "auto":
            return status
        if status:
            print(f"The CPU build cannot be had here: PyPI's follows, {WITH_CUDA} with CUDA. Ctrl-C stops.", flush=True)
    constraints = ("-c", str(ROOT / "constraints.txt"))
    return run(*PIP, "install", *constraints, "-e", f"{ROOT}[{','.join(options.extras)}]")


def chosen_build(asked: str) -> str | None:
    """The backend that uv is asked for, or None where pip takes torch; prints which, and how to choose another."""
    if asked not in ("auto", "pip"):
        return asked
    if asked == "pip" or sys.platform != "linux" or installed_torch() is not None:
        return None
    pinned = pinned_torch()
    offered = builds_of_pip(pinned)
    if offered:
        print(f"torch: {offered[0]}, which pip is configured to find.", flush=True)
        return None
    if has_nvidia_driver():
        print(f"torch: PyPI's {pinned} with CUDA, {WITH_CUDA}; TORCH=cpu takes the CPU build, {ON_CPU}.", flush=True)
        return None
    print(
        f"torch: the CPU build of {pinned}, {ON_CPU} to download, since no NVIDIA driver is here; "
        f"TORCH=pip takes PyPI's with CUDA, {WITH_CUDA}; TORCH=rocm7.0 or cu130, say, another of PyTorch's.",
        flush=True,
    )
    return "cpu"


def install_torch(build: str) -> int:
    """torch alone, by uv; the exit status."""
    status = run(*PIP, "install", "uv")
    where = ("--python", sys.executable, "--torch-backend", build)
    return status or run(sys.executable, "-m", "uv", "pip", "install", *where, "--no-deps", f"torch=={pinned_torch()}")


def pinned_torch() -> str:
    """The version in constraints.txt, with which the tests are run."""
    found = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SystemExit("expected a line torch==VERSION in constraints.txt, got none")
    return found[1]


def builds_of_pip(version: str) -> list[str]:
    """The builds of this version with a label of their own, as 2.13.0+cpu, that pip finds; pip prefers them."""
    done = subprocess.run([*PIP, "index", "versions", "torch"], capture_output=True, text=True, check=False)
    return re.findall(rf"(?<![\w.]){re.escape(version)}\+[\w.]+", done.stdout)


def installed_torch() -> str | None:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def has_nvidia_driver() -> bool:
    return DRIVER.is_file() or shutil.which("nvidia-smi") is not None


def run(*command: str) -> int:
    print("$", *command, flush=True)
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
