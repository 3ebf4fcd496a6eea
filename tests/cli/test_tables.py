"""Tables and training lines at 80 columns: nothing wider, no number cut, and the plural of one is none."""

import importlib
import io
import json
import random

import pytest
import transformers
from rich.console import Console

from fastbert.data.audit_report import audit_table
from fastbert.finetuning.several_runs import _print_table
from fastbert.finetuning.options import Setting
from fastbert.kernels.specs.accuracy import Accuracy
from fastbert.training.log_lines import Clock, LogLines, duration
from fastbert.utils.printing import number_of
from fastbert.utils.sizes import SIZES
from fastbert.verification.fp8 import Finding, QuantizationReport
from fastbert.verification.fp8_report import show
from fastbert.verification.report import Report
from fastbert.verification.rows import Row


@pytest.fixture
def screen() -> Console:
    return Console(file=io.StringIO(), width=80)


def printed(screen: Console) -> list[str]:
    lines = [line.rstrip() for line in screen.file.getvalue().splitlines()]
    assert max(map(len, lines)) <= 80, lines
    assert not [line for line in lines if "…" in line]
    return lines
