"""The kernel check runs in a process of its own and reports rows, or how that process failed."""

import dataclasses
import json
import sys

import pytest
import torch

from fastbert.kernels.specs.accuracy import Accuracy
from fastbert.verification import kernels
from fastbert.verification.proofs import Proof, digest_of


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
    line |= {"proved": ["interpreter", "PTX of sm_80"], "earlier": ["PTX of sm_90"]}
    code = f"import os, json\nassert os.environ['TRITON_INTERPRET'] == '1'\nprint(json.dumps({line}))"
    (row,) = child(monkeypatch, tmp_path, code)
    assert (row.section, row.where, row.count, row.worst.allowed, row.passed) == ("kernels", "gelu", 3, 4.0, True)
    assert (row.proved, row.earlier) == (("interpreter", "PTX of sm_80"), ("PTX of sm_90",))


@pytest.mark.skipif(sys.platform == "win32", reason="scripts are not executable there")
def test_a_process_that_fails_is_an_error_with_its_last_lines(monkeypatch, tmp_path):
    with pytest.raises(RuntimeError, match="ended with status 3: no kernel today"):
        child(monkeypatch, tmp_path, "import sys\nsys.stderr.write('no kernel today')\nsys.exit(3)")


@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_a_row_says_where_its_kernels_were_proved(monkeypatch, capsys, triton_device, right):
    """Here, and where the record says so, of these sources and of these numbers; nowhere, where they are wrong."""
    import triton

    from fastbert.kernels.specs import registry

    spec = next(spec for spec in registry.ALL_SPECS if spec.name == "layer_norm")
    proof = Proof("layer_norm", "sm_80", ("bf16", "fp32"), 12, "of runs", 40, 0.5, triton.__version__, digest_of(spec))
    monkeypatch.setattr(registry, "ALL_SPECS", (spec,))
    monkeypatch.setattr(kernels, "read_proofs", lambda: [proof, dataclasses.replace(proof, target="sm_90", sources="other")])
    if not right:
        monkeypatch.setattr(kernels, "check_operation", lambda *_: [Accuracy("out", 2.0, 1.0, 1.0)])
    kernels.main(triton_device.type, 1)
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    rows = {row["where"]: (row["proved"], row["earlier"]) for row in lines}
    here = "this GPU" if triton_device.type == "cuda" else "interpreter"
    version = f"triton {triton.__version__}"
    these, earlier = f"PTX of sm_80 in bf16, fp32 ({version})", f"PTX of sm_90 in bf16, fp32 ({version})"
    assert rows["layer_norm float32"] == (([here, these], [earlier]) if right else ([], []))
    assert rows["layer_norm float16"] == (([here], []) if right else ([], []))
