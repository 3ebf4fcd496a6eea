"""What `test_finetuning_processes` fine-tunes; as a program, in each of its processes: several_runs.py CHECKPOINT FOLDER.

Each process leaves what its calls returned and printed as FOLDER/process-N.json.
"""

import dataclasses
import io
import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

from rich.console import Console

from fastbert.cli.app import app
from fastbert.finetuning.data import DataOptions
from fastbert.finetuning.options import Options, Setting
from fastbert.finetuning.run import finetune
from tests.finetuning.small_tasks import write_files

STILL = Setting(batch_size=8, learning_rate=2e-3, epochs=2, dropout=0.0)
COUNT = 25  # the last batch of an epoch has one row: a process goes without
KINDS = ("classify", "tag", "qa")
GRID = "grid"


def options_of(kind: str, checkpoint: str, folder: Path) -> Options:
    task = "classify" if kind == GRID else kind
    train, evaluation = write_files(folder / f"{kind}-{os.getpid()}", task, COUNT)
    options = Options(task, checkpoint, DataOptions(train, evaluation, max_length=32), folder / kind, STILL)
    if kind == GRID:
        grid = tuple(dataclasses.replace(STILL, learning_rate=rate, epochs=1) for rate in (1e-5, 5e-3))
        options = dataclasses.replace(options, grid=grid)
    return options


def run_all(checkpoint: str, folder: Path) -> dict[str, list]:
    """[report, what was printed] of every kind, and of a grid twice."""
    found: dict[str, list] = {}
    for kind in (*KINDS, GRID, GRID):
        console = Console(file=io.StringIO(), width=200)
        report = finetune(options_of(kind, checkpoint, folder), console, resume=kind in found)
        found[f"{kind} again" if kind in found else kind] = [report, console.file.getvalue()]
    return found


if __name__ == "__main__":
    checkpoint, folder = sys.argv[1:]
    results = run_all(checkpoint, Path(folder))
    options, output = options_of("classify", checkpoint, Path(folder)), io.StringIO()
    command = ["finetune", "classify", "--model", checkpoint, "--train", options.data.train, "--eval", options.data.evaluation]
    command += ["--out", options.out, "--max-length", "32", "--batch-size", "8", "--learning-rate", "2e-3", "--epochs", "2"]
    with redirect_stdout(output):
        app([str(word) for word in [*command, "--dropout", "0", "--resume"]], standalone_mode=False)
    results["command"] = [None, output.getvalue()]
    (Path(folder) / f"process-{os.environ['RANK']}.json").write_text(json.dumps(results))
