"""The benchmarks' own honesty: turns, reasons instead of numbers, a planted wrong kernel, a planted slow one."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from benchmarks.harness import lengths, plan, work
from benchmarks.harness.arena import CLOCK, Absent, Candidate, Pace, Prepared, compete
from benchmarks.harness.records import ABSENT, FAILED, TIMED, WRONG, load
from benchmarks.peers.compiled import Compilation
from fastbert.utils.flops import encoder_flops

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def test_contenders_take_turns_and_a_reason_stands_for_a_number():
    turns: list[str] = []

    def counted(name: str, fails_after: int | None = None) -> Candidate:
        def step() -> None:
            turns.append(name)
            if fails_after is not None and turns.count(name) > fails_after:
                raise RuntimeError("planted\nsecond line")

        return Candidate(name, lambda: Prepared(step))

    def absent() -> Prepared:
        raise Absent("not installed")

    def breaks() -> Prepared:
        raise ValueError("cannot load")

    candidates = [
        counted("base"), Candidate("gone", absent), Candidate("broken", breaks), counted("crashes", fails_after=3),
        Candidate("wrong", lambda: Prepared(lambda: turns.append("wrong"), wrong="differs")), counted("fastbert"),
    ]  # fmt: skip
    found = {contender.name: contender for contender in compete(candidates, CPU, Pace(rounds=5, warm_up=1))}
    assert [found[c.name].status for c in candidates] == [TIMED, ABSENT, FAILED, FAILED, WRONG, TIMED]
    assert found["gone"].reason == "not installed"
    assert found["crashes"].reason == "RuntimeError: planted"
    assert found["crashes"].seconds == ()
    assert "wrong" not in turns
    assert len(found["base"].seconds) == len(found["fastbert"].seconds) == 5
    places = [place for place, name in enumerate(turns) if name == "fastbert"]
    assert all("base" in turns[a:b] for a, b in zip(places, places[1:]))  # the baseline between any two of ours


def test_the_device_clock_counts_what_the_device_says():
    begin = CLOCK()
    CLOCK.replace(0.0, 100.0)
    assert CLOCK() - begin == pytest.approx(100.0, abs=1.0)
    CLOCK.replace(100.0, 0.0)


def test_an_inactive_compilation_is_no_contender():
    compilation = Compilation("default", ("default",))
    with pytest.raises(RuntimeError, match="no graph"):
        compilation.proof()
    with pytest.raises(Absent, match="no compilation"):
        Compilation("default", ())


@pytest.mark.parametrize("mix", list(lengths.mixes()))
def test_length_mixes_stay_in_bounds_and_repeat(mix):
    drawn = lengths.draw(mix, 500, 128, seed=3)
    assert len(drawn) == 500
    assert 1 <= min(drawn) <= max(drawn) <= 128
    assert drawn == lengths.draw(mix, 500, 128, seed=3)
    assert mix == "fixed" or drawn != lengths.draw(mix, 500, 128, seed=4)


def test_an_unknown_length_mix_is_refused():
    with pytest.raises(ValueError, match=r"expected a length mix among .*wiki-qa.*, got 'none'"):
        lengths.draw("none", 1, 128)


def test_counted_flops_are_those_of_the_matrix_products():
    import transformers
    from torch.utils.flop_counter import FlopCounterMode

    config = work.config("tiny")
    config._attn_implementation = "eager"
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    for seqlens in ((12,), (30, 30, 30)):
        batch = work.batch(seqlens, config.vocab_size, CPU)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(**batch.inputs)
        assert encoder_flops(config, seqlens) == counter.get_total_flops()


def test_every_size_of_run_has_cases_with_names_of_their_own():
    for size in ("check", "quick", "default", "full"):
        for cases in (plan.kernel_cases, plan.inference_cases, plan.training_cases, plan.scaling_cases):
            names = [case.id for case in cases(size)]
            assert names
            assert len(set(names)) == len(names)


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
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
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
    ours = row.contender("fastbert")
    assert (ours.status, ours.seconds) == (WRONG, ())
    assert "error" in ours.reason
    assert row.baseline.status == TIMED
    assert json.loads(wrong.read_text())["fastbert"]["conditions"]["device_type"] in ("cpu", "cuda")
