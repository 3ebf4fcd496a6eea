"""Records made by hand, and what the commands print of them."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path

from typer import Typer
from typer.testing import CliRunner

from benchmarks.harness.records import ABSENT, FAILED, TIMED, WRONG, Case, Contender, Row

CONDITIONS = {
    "device_type": "cpu",
    "device": "Some CPU",
    "versions": {"torch": "2.13.0", "fastbert": "0.1"},
    "threads": 2,
    "seed": 0,
    "command": "pytest benchmarks",
    "commit": "0123456789abcdef",
    "dirty": False,
    "started": "2026-01-01T00:00:00Z",
}
CEILINGS = {"matmul": {"float32": 1e11, "bfloat16": 2e11}, "copy": 1e10}
INFERENCE = Case("inference", "bert-base", "float32", 32, 128, "books", 1600, 4096, 2.4e9)
PRETRAINING = Case("pretraining", "bert-base", "bf16", 32, 128, "books", 1600, 4096, 7.2e9)
KERNEL = Case("kernels", "bert-base", "float32", 8, 128, "fixed", 1024, 1024, 1e9, 1e8, "layer norm", "forward")
SCALING = Case("scaling", "bert-base", "float32", 4, 128, "fixed", 512, 512, 1e9, num_layers=2)
RUNNER = CliRunner()


def timed(name: str, seconds: float, rounds: int = 9, jitter: float = 0.0, seed: int = 0, **more) -> Contender:
    rng = random.Random(f"{name} {seconds} {seed}")
    return Contender(name, TIMED, seconds=tuple(seconds * (1 + jitter * rng.uniform(-1, 1)) for _ in range(rounds)), **more)


def write(path: Path, *rows: Row, ceilings=CEILINGS, **conditions) -> Path:
    """A file as `pytest benchmarks --record` leaves it."""
    own = {"conditions": CONDITIONS | conditions, "ceilings": ceilings, "rows": [row.as_dict() for row in rows]}
    content = {"fastbert": own}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def run(module, *arguments) -> tuple[int, str]:
    app = Typer()
    app.command()(module.main)
    result = RUNNER.invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def everything() -> list[Row]:
    peers = (Contender("gone", ABSENT, "needs a GPU"), Contender("crashed", FAILED, "out of memory"))
    peers += (Contender("liar", WRONG, "differs by 3.00 | a lot"),)
    rows = [Row(INFERENCE, (timed("transformers", 0.2), *peers, timed("fastbert", 0.1, peak_bytes=3 << 20)))]
    rows.append(Row(replace(INFERENCE, seqlen=256), (timed("transformers", 0.5), timed("fastbert", 0.2))))
    own_batch = timed("fastbert", 0.3, real_tokens=800, flops=3.6e9, details={"micro-batch": 16})
    rows.append(Row(PRETRAINING, (timed("transformers", 0.6), own_batch)))
    rows.append(Row(KERNEL, (timed("torch", 0.02), timed("fastbert", 0.01))))
    for layers in (2, 4, 8):
        case = replace(SCALING, num_layers=layers)
        rows.append(Row(case, (timed("fastbert", 0.01 * layers**1.5, details={"axis": "num_layers", "value": layers}),)))
    return rows


def cells_of(text: str, *wanted: str) -> list[str]:
    """The one table line that has these cells, as cells."""
    lines = [re.split(r" (?<!\\)\| ", line[2:-2]) for line in text.splitlines() if line.startswith("| ")]
    found = [line for line in lines if set(wanted) <= set(line)]
    assert len(found) == 1, found
    return found[0]
