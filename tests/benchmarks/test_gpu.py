"""`make gpu` itself needs a GPU; what it is going to run does not."""

import importlib.util
from pathlib import Path

import pytest

from benchmarks.gpu import STEPS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("name", "command"), [(name, command) for name, command, _ in STEPS])
def test_every_module_and_file_of_a_step_exists(name, command):
    module, *arguments = command
    assert importlib.util.find_spec(module) is not None
    for path in (argument for argument in arguments if argument.startswith(("tests/", "benchmarks/"))):
        assert (ROOT / path).exists(), path


def test_the_steps_fit_ten_minutes():
    assert sum(limit for _, _, limit in STEPS) <= 600
