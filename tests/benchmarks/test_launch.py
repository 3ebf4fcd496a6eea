"""The measurement of the host's part of a call: it runs, it starts no kernel, and it leaves nothing behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

ROOT = Path(__file__).resolve().parents[2]


def test_every_operation_and_the_layer_have_a_time():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.launch", "--rounds", "1", "--calls", "2"]
    environment |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    rows = dict(re.findall(r"│ ([\w ]+?) +│ +(\d+ \(\d+\) │ +\d+ \(\d+\)) │", done.stdout))
    assert set(rows) == {"qkv_linear", "attention", "linear", "layer_norm", "feed_forward", "a layer"}
    kernels = {name: re.findall(r"\((\d+)\)", cells) for name, cells in rows.items()}
    assert kernels["attention"] == ["1", "2"]
    # Attention, two norms and the activation of the feed-forward; the library has the other products on sm_90.
    assert kernels["a layer"][0] == "4"


def test_the_interpreter_has_no_launcher_to_measure():
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "benchmarks.launch"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 2
    assert "expected TRITON_INTERPRET unset" in done.stderr
