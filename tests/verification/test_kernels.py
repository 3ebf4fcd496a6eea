"""The kernel check runs in a process of its own and reports rows, or how that process failed."""

import sys

import pytest
import torch

from fastbert.verification import kernels


def child(monkeypatch, tmp_path, code):
    """Runs `code` for the kernel check."""
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\n{code}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    return list(kernels.verify_kernels(torch.device("cpu"), 1))


@pytest.mark.skipif(sys.platform == "win32", reason="scripts are not executable there")
def test_rows_come_from_the_lines_of_the_process(monkeypatch, tmp_path):
    line = {"where": "gelu", "worst": {"name": "out", "error": 1.0, "torch_error": 2.0, "allowed": 4.0}, "count": 3}
    code = f"import os, json\nassert os.environ['TRITON_INTERPRET'] == '1'\nprint(json.dumps({line}))"
    (row,) = child(monkeypatch, tmp_path, code)
    assert (row.section, row.where, row.count, row.worst.allowed, row.passed) == ("kernels", "gelu", 3, 4.0, True)


@pytest.mark.skipif(sys.platform == "win32", reason="scripts are not executable there")
def test_a_process_that_fails_is_an_error_with_its_last_lines(monkeypatch, tmp_path):
    with pytest.raises(RuntimeError, match="ended with status 3: no kernel today"):
        child(monkeypatch, tmp_path, "import sys\nsys.stderr.write('no kernel today')\nsys.exit(3)")
