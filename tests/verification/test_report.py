"""What the report of `fastbert verify` says of where the kernels were proved."""

import io

import pytest
from rich.console import Console

from fastbert.kernels.specs.accuracy import Accuracy
from fastbert.verification.report import Report
from fastbert.verification.rows import Row

GOOD, BAD = Accuracy("out", 1.0, 1.0, 2.0), Accuracy("out", 3.0, 1.0, 2.0)
PTX = "PTX of sm_80, sm_90 in bf16, fp32 (triton 3.7.1)"


@pytest.fixture
def report() -> Report:
    return Report(Console(file=io.StringIO(), width=200))


def printed(report: Report) -> list[str]:
    return report.console.file.getvalue().splitlines()


def test_kernels_with_the_same_proofs_share_a_line(report):
    report.add(
        [
            Row("kernels", "layer_norm float32", GOOD, 2, ("interpreter", PTX)),
            Row("kernels", "fp8_linear float32", GOOD, 2, ("interpreter",)),
            Row("kernels", "attention float32", GOOD, 2, ("interpreter", PTX)),
            Row("kernels", "linear float32", GOOD, 2, ("interpreter",), (PTX,)),
            Row("kernels", "attention float16", BAD, 2, (PTX,), (PTX,)),
        ]
    )
    lines = printed(report)
    start = next(i for i, line in enumerate(lines) if line.startswith("proved by"))
    assert lines[start:] == [
        f"proved by: interpreter; {PTX}",
        "  layer_norm float32, attention float32",
        "proved by: interpreter",
        "  fp8_linear float32, linear float32",
        f"earlier sources were proved by: {PTX}",
        "  linear float32",
    ]
    assert not any("attention float16" in line for line in lines[start:])


def test_rows_of_a_model_are_proved_by_nothing_but_themselves(report):
    report.add([Row("outputs", "last_hidden_state", GOOD, 1)])
    assert not any(line.startswith("proved by") for line in printed(report))


def test_json_carries_the_proofs_of_kernels_alone(report):
    report.add(
        [
            Row("outputs", "last_hidden_state", GOOD, 1),
            Row("kernels", "attention float32", GOOD, 2, ("this GPU",), (PTX,)),
            Row("kernels", "linear float32", BAD, 2, (PTX,), (PTX,)),
        ]
    )
    model, kernel, failed = report.as_dict()["rows"]
    assert not {"proved", "earlier"} & set(model)
    assert (kernel["proved"], kernel["earlier"]) == (["this GPU"], [PTX])
    assert (failed["proved"], failed["earlier"]) == ([], [])
