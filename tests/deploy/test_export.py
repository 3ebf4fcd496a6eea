"""`fastbert export`: what is written computes what the model does, whatever the batch, and nothing is written that does not."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
import typer
from typer.testing import CliRunner

from fastbert.cli.deploy import export as export_command
from fastbert.deploy import export
from fastbert.utils.errors import InputError
from fastbert.utils.installation import install_command

LIMIT = 40
MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed: the extra `export`")
app = typer.Typer()
app.command()(export_command)


def save(folder: Path, class_name: str, **values) -> str:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=LIMIT,
        initializer_range=0.2,
        **values,
    )
    getattr(transformers, class_name)(config).save_pretrained(folder)
    return str(folder)


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(one) for one in arguments])


def ragged(*lengths: int, choices: int = 0) -> dict[str, torch.Tensor]:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    batch = {"input_ids": torch.randint(60, mask.shape), "attention_mask": mask, "token_type_ids": torch.zeros_like(mask)}
    return {name: value[:, None].repeat(1, choices, 1) for name, value in batch.items()} if choices else batch


@pytest.mark.parametrize(
    ("class_name", "names", "values"),
    [
        ("BertForPreTraining", ["prediction_logits", "seq_relationship_logits"], {}),
        ("BertLMHeadModel", ["logits"], {"is_decoder": True}),
        ("BertForMultipleChoice", ["logits"], {}),
        ("BertForQuestionAnswering", ["start_logits", "end_logits"], {}),
    ],
)
def test_torch_export_is_written_and_runs_any_batch(class_name, names, values, tmp_path):
    folder, out = save(tmp_path / "model", class_name, **values), tmp_path / "model.pt2"
    done = invoke(folder, "--to", "torch-export", "--out", out)
    assert done.exit_code == 0, done.output
    assert f"fastbert.{class_name}: input_ids, attention_mask, token_type_ids -> {', '.join(names)}, float32" in done.output
    assert "on 4 ragged batches: largest difference" in done.output
    program = torch.export.load(out).module()
    reference = getattr(transformers, class_name).from_pretrained(folder).eval()
    choices = 3 if class_name == "BertForMultipleChoice" else 0
    for lengths in ((6,), (3, LIMIT), (7, 2, 11, 5, 1)):
        batch = ragged(*lengths, choices=choices)
        with torch.no_grad():
            wanted, found = reference(**batch), program(**batch)
        assert list(found) == names
        for name in names:
            of_tokens = wanted[name].shape[:2] == batch["attention_mask"].shape
            real = batch["attention_mask"] == 1 if of_tokens else slice(None)
            torch.testing.assert_close(found[name][real], wanted[name][real], atol=1e-5, rtol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.pt2"]


def test_a_program_needs_pytorch_alone(tmp_path):
    out = tmp_path / "model.pt2"
    assert export.export_checkpoint(save(tmp_path / "model", "BertModel"), "torch-export", out, say=lambda line: None)
    code = """if True:
        import sys, torch
        ids = torch.tensor([[1, 2, 3], [4, 5, 0]])
        program = torch.export.load(sys.argv[1]).module()
        found = program(input_ids=ids, attention_mask=(ids > 0).long(), token_type_ids=torch.zeros_like(ids))
        assert "fastbert" not in sys.modules and "transformers" not in sys.modules
        print({name: list(value.shape) for name, value in found.items()})
    """
    done = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == "{'last_hidden_state': [2, 3, 32], 'pooler_output': [2, 32]}", done.stderr


@needs_onnx
@pytest.mark.parametrize("class_name", ["BertModel", "BertForMultipleChoice", "BertForTokenClassification"])
def test_onnx_is_written_and_runs_any_batch(class_name, tmp_path):
    import onnxruntime

    folder, out = save(tmp_path / "model", class_name), tmp_path / "model.onnx"
    done = invoke(folder, "--to", "onnx", "--out", out)
    assert done.exit_code == 0, done.output
    assert f"fastbert.{class_name}: input_ids" in done.output
    assert f"run against transformers.{class_name} on 4 ragged batches" in done.output
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["input_ids", "attention_mask", "token_type_ids"]
    choices = 3 if class_name == "BertForMultipleChoice" else 0
    reference = getattr(transformers, class_name).from_pretrained(folder).eval()
    for lengths in ((6,), (3, LIMIT), (7, 2, 11, 5, 1), (4, 0, 7)):
        batch = ragged(*lengths, choices=choices)
        with torch.no_grad():
            wanted = reference(**batch)
        found = session.run(None, {name: value.numpy() for name, value in batch.items()})
        assert [one.name for one in session.get_outputs()] == list(wanted)
        for value, right in zip(map(torch.from_numpy, found), wanted.values()):
            of_tokens = right.shape[:2] == batch["attention_mask"].shape
            real = batch["attention_mask"] == 1 if of_tokens else slice(None)
            torch.testing.assert_close(value[real], right[real], atol=1e-5, rtol=1e-5)


@needs_onnx
def test_without_a_runtime_an_onnx_file_is_written_but_not_trusted(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    folder = save(tmp_path / "model", "BertForTokenClassification")
    done = invoke(folder, "--to", "onnx", "--out", tmp_path / "a.onnx")
    assert done.exit_code == 1
    assert "not run: onnxruntime is not installed: pip install" in done.output
    assert (tmp_path / "a.onnx").is_file()
    assert invoke(folder, "--to", "onnx", "--out", tmp_path / "b.onnx", "--no-check").exit_code == 0


def test_without_an_exporter_nothing_is_written(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    done = invoke(save(tmp_path / "model", "BertModel"), "--to", "onnx", "--out", tmp_path / "a.onnx")
    assert done.exit_code == 2
    assert f"onnxscript for ONNX, got none installed: {install_command('export')}" in done.output
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.parametrize("damage", [1e-2, float("nan")])
def test_a_file_that_differs_is_not_written(damage, tmp_path, monkeypatch):
    folder, out = save(tmp_path / "model", "BertForSequenceClassification"), tmp_path / "model.pt2"
    real = export._to_program

    def wrong(model, *arguments):
        bias = model.model.classifier.bias
        bias += damage
        try:
            return real(model, *arguments)
        finally:
            bias.copy_(torch.zeros_like(bias))  # what it was: the model is compared with the file afterwards

    monkeypatch.setattr(export, "_to_program", wrong)
    done = invoke(folder, "--to", "torch-export", "--out", out)
    assert done.exit_code == 1
    assert "not written: expected at most 0.0001 of the largest output" in done.output
    assert not out.exists()
    done = invoke(folder, "--to", "torch-export", "--out", out, "--no-check")
    assert done.exit_code == 0
    assert "not run: --no-check" in done.output
    assert out.is_file()


def test_a_random_pooler_is_left_out(tmp_path):
    folder = tmp_path / "model"
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    lines: list[str] = []
    assert export.export_checkpoint(str(folder), "torch-export", tmp_path / "model.pt2", check=False, say=lines.append)
    assert "-> last_hidden_state, float32" in lines[0]


def test_bad_input_is_told_before_anything_is_written(tmp_path):
    folder, out = save(tmp_path / "model", "BertForTokenClassification"), tmp_path / "model.pt2"

    def refused(message: str, file: Path = out, path: str = folder) -> None:
        with pytest.raises(InputError, match=message):
            export.export_checkpoint(path, "torch-export", file, say=lambda line: None)
        assert not out.exists()

    refused(r"expected a name that ends in \.pt2", tmp_path / "model.bin")
    refused(r"expected a folder that exists for .*model\.pt2, got .*none", tmp_path / "none" / "model.pt2")
    (tmp_path / "old.pt2").write_bytes(b"mine")
    refused(r"expected a new output, --overwrite, which starts over, got .*old\.pt2, which exists", tmp_path / "old.pt2")
    assert (tmp_path / "old.pt2").read_bytes() == b"mine"
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "architectures": ["BertForSequenceClassification"]}))
    (tmp_path / "model" / "frozen.json").write_text("{}")
    refused("expected a checkpoint of a class among BertModel, .*, got an encoder with the head of --frozen in")
    (tmp_path / "model" / "frozen.json").unlink()
    refused("expected all weights of BertForSequenceClassification in .*, got none for bert.pooler.dense.bias")
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "architectures": ["MyOwnBert"]}))
    refused("expected a checkpoint of a class among BertModel, .*, got MyOwnBert in")
