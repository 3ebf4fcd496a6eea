"""The kernel benchmark from the command line: a planted wrong kernel and a planted slow one are caught."""

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks import compare
from benchmarks.harness.records import TIMED, WRONG, load
from tests.benchmarks.records import run

ROOT = Path(__file__).parents[2]

PLUGIN = """
import dataclasses, time
import fastbert.kernels.specs.registry as specs

def slow(function):
    def changed(*args, **kwargs):
        time.sleep(0.02)
        return function(*args, **kwargs)
    return changed

def wrong(function):
    return lambda *args, **kwargs: function(*args, **kwargs) * 1.01

planted = {"layer_norm": slow, "embedding": wrong}
specs.ALL_SPECS = tuple(
    dataclasses.replace(spec, function=planted[spec.name](spec.function)) if spec.name in planted else spec
    for spec in specs.ALL_SPECS
)
"""


def run_both(folder: Path, name: str, *options: str, planted: bool = False) -> tuple[int, Path]:
    """The benchmarks of layer norm and embedding in a process of their own, where `planted` with other operations."""
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
    if planted:
        (folder / "plant.py").write_text(PLUGIN)
        arguments = ["-p", "plant", *arguments]
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


def test_a_planted_slowdown_is_caught_and_a_planted_wrong_kernel_gives_no_number(tmp_path):
    status, before = run_both(tmp_path, "before")
    assert status == 0
    kept = before.read_bytes()
    assert run_both(tmp_path, "before", "--resume")[0] == 0
    assert before.read_bytes() == kept  # nothing ran again

    status, after = run_both(tmp_path, "after", planted=True)
    assert status == 1
    rows = {row.case.operation: row for row in load(after).rows}
    assert rows["layer_norm"].contender("fastbert").status == TIMED
    contender = rows["embedding"].contender("fastbert")
    assert (contender.status, contender.seconds) == (WRONG, ())
    assert "error" in contender.reason
    assert rows["embedding"].baseline.status == TIMED
    assert json.loads(after.read_text())["fastbert"]["conditions"]["device_type"] in ("cpu", "cuda")

    status, output = run(compare, before, after)
    assert status == 1, output
    for operation, verdict in (("layer_norm", "slower"), ("embedding", "lost")):
        lines = [line for line in output.splitlines() if operation in line and " fastbert " in line]
        assert len(lines) == 1, output
        assert verdict in lines[0], output
    assert run(compare, after, before)[0] == 0
