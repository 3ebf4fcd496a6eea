"""The measurement of the host's part of a call: it runs, it starts no kernel, and it leaves nothing behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

ROOT = Path(__file__).resolve().parents[2]
# A library writes the bias of each of the three projections into the result first.
FORWARD = {
    "attention_fwd_short_kernel": 1,
    "layer_norm_fwd_kernel": 2,
    "gemm_fwd_kernel": 1,
    "addmm": 3,
    "copy_": 3,
    "mm": 2,
}
BACKWARD = {
    "layer_norm_bwd_kernel": 2,
    "sum_partials_kernel": 4,
    "gemm_dgrad_kernel": 1,
    "attention_bwd_short_kernel": 1,
    "column_sum_kernel": 1,
    "mm": 7,
    "add_": 2,
    "cat": 1,
}


@pytest.fixture(scope="module")
def printed() -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.launch", "--rounds", "1", "--calls", "2", "--kernels"]
    environment |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_operation_has_a_time(printed):
    rows = dict(re.findall(r"│ ([\w ]+?) +│ +(\d+ \(\d+\) │ +\d+ \(\d+\)) │", printed))
    assert set(rows) == {"qkv_linear", "attention", "linear", "layer_norm", "feed_forward"}
    kernels = {name: re.findall(r"\((\d+)\)", cells) for name, cells in rows.items()}
    assert kernels["attention"] == ["1", "3"]  # the gradient of qkv is added to the one before
    assert kernels["qkv_linear"][0] == "6"


def test_a_layer_and_a_model_stand_beside_those_of_transformers(printed):
    rows = re.findall(r"│ (a layer|12 layers), (inference|forward \+ backward) +│ +(.+?) │ +(.+?) │ +(\d+\.\d\d) │", printed)
    assert [row[:2] for row in rows] == [
        (name, phase) for phase in ("inference", "forward + backward") for name in ("a layer", "12 layers")
    ]
    assert all(float(ratio) > 0 for *_, ratio in rows)


def test_the_kernels_of_a_layer_by_name(printed):
    """A kernel more is a microsecond or two of a GPU's time, and more of the host's."""
    text = " ".join(printed.split())

    def named(phase: str) -> dict[str, int]:
        words = re.search(rf"a layer, {re.escape(phase)}: ((?:(?:\d+ )?\w+, )*(?:\d+ )?\w+)", text).group(1)
        found = (re.fullmatch(r"(?:(\d+) )?(\w+)", word).groups() for word in words.split(", "))
        return {name: int(number or 1) for number, name in found}

    assert named("inference") == FORWARD
    both = {name: FORWARD.get(name, 0) + BACKWARD.get(name, 0) for name in {**FORWARD, **BACKWARD}}
    assert named("forward + backward") == both
    assert (sum(FORWARD.values()), sum(BACKWARD.values())) == (12, 19)


def test_the_interpreter_has_no_launcher_to_measure():
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "benchmarks.launch"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 2
    assert "expected TRITON_INTERPRET unset" in done.stderr
