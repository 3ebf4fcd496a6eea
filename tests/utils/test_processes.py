"""What ranks decide together, on two processes over gloo and on one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastbert.utils.errors import DataError
from fastbert.utils.processes import decide_on_rank0, ending_together

ROOT = Path(__file__).parents[2]
CODE = """
import sys
import torch
from fastbert.utils.errors import InputError
from fastbert.utils.processes import decide_on_rank0, ending_together

rank, file = int(sys.argv[1]), sys.argv[2]
calls = []

def refuse():
    raise InputError("expected one thing, got another")

with ending_together():
    torch.distributed.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=2)
    decided = decide_on_rank0(lambda: calls.append(rank) or {"rank": rank})
    try:
        decide_on_rank0(refuse)
    except InputError as error:
        print(decided, calls, error)
assert not torch.distributed.is_initialized()
"""


def test_rank_0_decides_for_all_and_its_errors_are_raised_by_all(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CODE]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], env=environment, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=120)[0].strip() for process in processes]
    message = "expected one thing, got another"
    assert printed == [f"{{'rank': 0}} [0] {message}", f"{{'rank': 0}} [] {message}"]
    assert [process.returncode for process in processes] == [0, 0]


def test_one_process_decides_alone():
    assert decide_on_rank0(lambda: 3) == 3
    with pytest.raises(DataError, match="no data"), ending_together():
        decide_on_rank0(lambda: (_ for _ in ()).throw(DataError("no data")))
