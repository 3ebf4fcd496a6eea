"""The record of proofs: that the committed one is of these sources, what changes a digest, what `verify` says of it."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from fastbert.kernels import fp8, functional
from fastbert.kernels.dropout import new_seed
from fastbert.kernels.specs.spec import OperationSpec
from fastbert.verification.proofs import (
    KERNELS,
    Proof,
    add_proofs,
    digest,
    digest_of,
    digest_of_runs,
    files_of,
    files_proved,
    files_reached,
    proved_by,
    read_proofs,
)

PROOF = Proof("attention", "sm_80", ("bf16", "fp32"), 35, "89abcdef01234567", 70, 0.5, "3.7.1", "0123456789abcdef")
RENEW = "`make proofs` renews the record"


def test_the_record_is_of_these_sources():
    """For every operation and target, of every sample and tile in every kind of numbers."""
    pytest.importorskip("triton", reason="Triton is not installed: no kernel")
    from fastbert.kernels.specs.registry import ALL_SPECS
    from tests.compiled.complete import complete

    recorded = {proof.key: proof for proof in read_proofs()}
    for spec in ALL_SPECS:
        sources = digest_of(spec)
        for target in ("sm_80", "sm_90"):
            wanted = complete(spec, int(target.removeprefix("sm_")))
            if not wanted:
                continue
            proof = recorded.get((spec.name, target))
            assert proof is not None, f"{spec.name} has no proof for {target}: {RENEW}"
            assert proof.sources == sources, f"the kernels of {spec.name} changed since they were proved for {target}: {RENEW}"
            kinds = {kind for kind, _ in wanted}
            assert set(proof.kinds) == kinds, f"{spec.name} was proved in {proof.kinds} on {target}: {RENEW}"
            passed = (proof.runs, proof.runs_digest)
            assert passed == (len(wanted), digest_of_runs(wanted)), f"not all of {spec.name} was proved on {target}: {RENEW}"
            assert proof.worst <= 1.0


@pytest.fixture
def kernels(tmp_path) -> Path:
    """A copy of the sources."""
    return Path(
        shutil.copytree(KERNELS, tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__", "*.json"))
    ).resolve()


def changed(kernels: Path, file: str, old: str, new: str) -> bool:
    """Whether the digest of attention's forward changes with this edit of a file."""

    def now() -> str:
        return digest(files_reached([kernels / "attention" / "forward.py"]), kernels)

    before = now()
    text = (kernels / file).read_text(encoding="utf-8")
    assert old in text
    (kernels / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    return now() != before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("attention/forward.py", "tl.load(", "tl.load( "),
        ("attention/forward.py", "import triton\n", "# a remark\nimport triton\n"),
        ("attention/blocks.py", '"""', '"""Other words. '),
        ("device.py", "The only file that tells devices apart", "The file that tells devices apart"),
        ("layer_norm.py", "import torch\n", "import torch\n\nX = 1\n"),  # attention does not import it
    ],
)
def test_words_and_files_not_reached_leave_the_digest(kernels, file, old, new):
    assert not changed(kernels, file, old, new)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("attention/forward.py", "import triton\n", "import triton\n\nX = 1\n"),
        ("primitives/philox.py", "import triton\n", "import triton\n\nX = None\n"),
        ("device.py", '"sm_80": 108', '"sm_80": 109'),  # reached through another file
    ],
)
def test_code_changes_the_digest(kernels, file, old, new):
    assert changed(kernels, file, old, new)


def test_an_operation_is_the_files_that_it_imports_when_called():
    def names(function) -> set[str]:
        return {file.relative_to(KERNELS.resolve()).as_posix() for file in files_of(function)}

    of_file = {"attention/schedule.py", "backend.py", "checks.py", "dropout.py", "limits.py", "reference.py"}
    assert names(functional.layer_norm) == {"layer_norm.py", *of_file}
    assert names(functional.attention) >= {"attention/op.py", *of_file}
    assert names(functional.attention_schedule) == {"attention/packing.py", "attention/work_list.py", *of_file}
    assert names(fp8.linear) == {"fp8_kernels.py", "backend.py", "device.py", "fp8_format.py", "limits.py", "reference.py"}
    with pytest.raises(ValueError, match="expected new_seed to import its kernels, got no import in it"):
        files_of(new_seed)


def spec_of(name: str) -> OperationSpec:
    pytest.importorskip("triton", reason="Triton is not installed: no kernel")
    from fastbert.kernels.specs.registry import ALL_SPECS

    return next(spec for spec in ALL_SPECS if spec.name == name)


def test_a_proof_speaks_of_the_public_function_and_of_what_judged_it():
    def names(operation: str) -> set[str]:
        return {file.relative_to(KERNELS.resolve()).as_posix() for file in files_proved(spec_of(operation))}

    judges = {"reference.py", "specs/accuracy.py", "specs/matrix_unit.py"}
    attention, linear = names("attention"), names("fp8_linear")
    assert attention >= {"functional.py", "checks.py", "specs/attention.py", "attention/forward.py", *judges}
    assert not attention & {"linear.py", "layer_norm.py", "fp8.py", "specs/linear.py"}
    assert linear >= {"fp8.py", "fp8_kernels.py", "specs/fp8.py", *judges}
    assert not linear & {"functional.py", "attention/op.py"}


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("specs/accuracy.py", "OUT_FACTOR = 2.0", "OUT_FACTOR = 3.0"),
        ("specs/attention.py", "grad_factor=3.0", "grad_factor=4.0"),
        ("functional.py", "check_attention(qkv", "check_nothing(qkv"),
        ("checks.py", "def check_attention(", "def check_nothing("),
    ],
)
def test_a_looser_rule_or_call_changes_the_digest(kernels, file, old, new):
    files = [kernels / proved.relative_to(KERNELS.resolve()) for proved in files_proved(spec_of("attention"))]
    before = digest(files, kernels)
    text = (kernels / file).read_text(encoding="utf-8")
    assert old in text
    (kernels / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    assert digest(files, kernels) != before


def test_files_are_reached_through_others():
    names = {file.relative_to(KERNELS.resolve()).as_posix() for file in files_reached([KERNELS / "attention" / "forward.py"])}
    assert {"attention/forward.py", "attention/blocks.py", "primitives/philox.py", "device.py"} <= names
    assert "layer_norm.py" not in names


def test_a_proof_replaces_the_one_of_its_operation_and_target(tmp_path):
    file = tmp_path / "proofs.json"
    assert read_proofs(file) == []
    newer, hopper = dataclasses.replace(PROOF, runs=36), dataclasses.replace(PROOF, target="sm_90")
    add_proofs([PROOF, hopper], file=file)
    add_proofs([newer], file=file)
    assert read_proofs(file) == [newer, hopper]


def test_a_proof_of_what_failed_since_is_taken_out(tmp_path):
    file = tmp_path / "proofs.json"
    hopper = dataclasses.replace(PROOF, target="sm_90")
    add_proofs([PROOF, hopper], file=file)
    add_proofs([], {("attention", "sm_90"), ("linear", "sm_80")}, file)
    assert read_proofs(file) == [PROOF]


def test_a_set_of_runs_has_one_digest():
    runs = [("bf16", "one (triton)"), ("fp32", "one (triton)")]
    assert digest_of_runs(runs) == digest_of_runs([*reversed(runs), runs[0]])
    assert len({digest_of_runs(some) for some in (runs, runs[:1], [("bf16", "one (library)"), runs[1]], [])}) == 4


@pytest.mark.parametrize("text", ["{", "[1]", '[{"operation": "attention"}]', json.dumps([{"kinds": []}])])
def test_another_file_is_an_error_that_names_it(tmp_path, text):
    file = tmp_path / "proofs.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"proofs\.json: expected a list of proofs, got"):
        read_proofs(file)


def test_what_the_record_says():
    both = [PROOF, dataclasses.replace(PROOF, target="sm_90")]
    said = proved_by(both, "attention", "bf16", PROOF.sources, "3.7.1")
    assert said == (("PTX of sm_80, sm_90 in bf16, fp32 (triton 3.7.1)",), ())
    assert proved_by(both, "attention", "fp16", PROOF.sources, "3.7.1") == ((), ())
    assert proved_by(both, "layer_norm", "bf16", PROOF.sources, "3.7.1") == ((), ())


def test_what_the_record_says_of_earlier_sources_and_other_versions():
    newer = dataclasses.replace(PROOF, target="sm_90", sources="newer")
    assert proved_by([PROOF, newer], "attention", "bf16", "newer", "3.7.1") == (
        ("PTX of sm_90 in bf16, fp32 (triton 3.7.1)",),
        ("PTX of sm_80 in bf16, fp32 (triton 3.7.1)",),
    )
    these, earlier = proved_by([PROOF], "attention", "bf16", PROOF.sources, "3.9.0")
    assert (these, earlier) == (("PTX of sm_80 in bf16, fp32 (triton 3.7.1, here 3.9.0)",), ())
