"""The kernel benchmark from the command line: a planted wrong kernel and a planted slow one are caught."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

from benchmarks.harness.records import TIMED, WRONG, load

ROOT = Path(__file__).parents[2]

PLUGIN = """
import dataclasses, time
import fastbert.kernels.specs.registry as specs

def planted(spec):
    function = spec.function
    def changed(*args, **kwargs):
        {body}
    return dataclasses.replace(spec, function=changed)

specs.ALL_SPECS = tuple(planted(spec) if spec.name == "layer_norm" else spec for spec in specs.ALL_SPECS)
"""


def run_layer_norm(folder: Path, name: str, body: str | None, *options: str) -> tuple[int, Path]:
    """The layer norm benchmark in a process of its own, with `body` in place of the operation."""
    # pytest-benchmark switches itself off in a worker of pytest-xdist, and this process may be one.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": f"{ROOT}:{folder}", "OMP_NUM_THREADS": "1"}  # waking threads can cost more than a kernel
    environment.pop("TRITON_INTERPRET", None)
    arguments = [
        "benchmarks/test_kernels.py",
        "--quick",
        "-k",
        "forward and (layer_norm or embedding)",
        f"--record={folder / name}.json",
        *options,
    ]
    if body is not None:
        (folder / f"plant_{name}.py").write_text(textwrap.dedent(PLUGIN).format(body=body))
        arguments = ["-p", f"plant_{name}", *arguments]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (folder / f"{name}.json").exists(), done.stdout + done.stderr
    return done.returncode, folder / f"{name}.json"


def compare(old: Path, new: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.compare", str(old), str(new)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_planted_slowdown_is_caught_and_a_planted_wrong_kernel_gives_no_number(tmp_path):
    status, before = run_layer_norm(tmp_path, "before", None)
    assert status == 0
    status, slow = run_layer_norm(tmp_path, "slow", "time.sleep(0.2); return function(*args, **kwargs)")
    assert status == 0
    caught = compare(before, slow)
    assert caught.returncode == 1, caught.stdout + caught.stderr
    assert "layer_norm" in caught.stdout
    assert compare(slow, before).returncode == 0

    kept = before.read_bytes()
    assert run_layer_norm(tmp_path, "before", None, "--resume")[0] == 0
    assert before.read_bytes() == kept  # nothing ran again

    status, wrong = run_layer_norm(tmp_path, "wrong", "return function(*args, **kwargs) * 1.01")
    assert status == 1
    row = next(row for row in load(wrong).rows if row.case.operation == "layer_norm")
    contender = row.contender("fastbert")
    assert (contender.status, contender.seconds) == (WRONG, ())
    assert "error" in contender.reason
    assert row.baseline.status == TIMED
    assert json.loads(wrong.read_text())["fastbert"]["conditions"]["device_type"] in ("cpu", "cuda")
