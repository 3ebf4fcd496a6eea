"""Everything that needs a GPU, in one command: `make gpu OUT=folder`.

Runs the test suite, the kernels' float64 check, the code generation table and the benchmarks on the machine's own packages,
without network, each step under a time limit, so that the whole ends within ten minutes. Writes one log per step, the
benchmarks' raw JSON, the report and `summary.json` into the folder.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from fastbert.utils.files import write_whole

from .harness.conditions import conditions

MODEL_TESTS = ("tests/model", "tests/deploy/test_graphs.py", "tests/deploy/test_fp8.py")
# name, command after `python -m`, seconds at most, exit statuses that pass
STEPS = (
    ("codegen", ["benchmarks.codegen", "--target", "sm_90", "--json", "{out}/codegen.json"], 40),
    ("kernels", ["pytest", "-q", "-n", "6", "tests/kernels", "-p", "no:cacheprovider"], 150),
    ("model", ["pytest", "-q", "-n", "4", *MODEL_TESTS, "-p", "no:cacheprovider"], 110),
    # The headline first: a row is on disk once it has run, whatever the time limit cuts off.
    (
        "benchmarks",
        [
            "pytest",
            "-q",
            "benchmarks/test_inference.py",
            "benchmarks/test_pretraining.py",
            "benchmarks/test_kernels.py",
            "-p",
            "no:cacheprovider",
            "--record={out}/raw.json",
        ],
        250,
    ),
    ("memory", ["benchmarks.memory"], 30),
    ("report", ["benchmarks.report", "{out}"], 15),
)


def main(out: Annotated[Path, typer.Option(help="Folder for logs and numbers.")]) -> None:
    """Run every step; exit status 1 where one failed or ran out of time."""
    if not torch.cuda.is_available():
        typer.echo("make gpu: expected a CUDA device, PyTorch sees none", err=True)
        raise typer.Exit(2)
    out.mkdir(parents=True, exist_ok=True)
    summary: dict = {**conditions(), "steps": []}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("TRITON_INTERPRET", None)
    for name, command, limit in STEPS:
        arguments = [part.replace("{out}", str(out)) for part in command]
        start = time.monotonic()
        with (out / f"{name}.log").open("w") as log:
            try:
                status = subprocess.run(
                    [sys.executable, "-m", *arguments], stdout=log, stderr=subprocess.STDOUT, env=environment, timeout=limit
                ).returncode
            except subprocess.TimeoutExpired:
                status = 124
        summary["steps"].append(
            {
                "name": name,
                "command": " ".join(["python", "-m", *arguments]),
                "status": status,
                "seconds": round(time.monotonic() - start, 1),
            }
        )
        lines = (out / f"{name}.log").read_text(errors="replace").splitlines()
        typer.echo("\n".join([f"== {name}: status {status}", *lines[-40:]]))
        write_whole(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    raise typer.Exit(0 if all(step["status"] == 0 for step in summary["steps"]) else 1)


if __name__ == "__main__":
    typer.run(main)
