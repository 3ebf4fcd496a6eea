"""`fastbert finetune` as a user calls it."""

import pytest
import typer
from typer.testing import CliRunner

from fastbert.cli.finetuning import finetune
from tests.finetuning.small_tasks import write_files

app = typer.Typer()
app.command()(finetune)


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture
def files(tmp_path):
    return write_files(tmp_path, "classify", 16)


def test_one_command_trains_and_prints_the_metrics(files, tmp_path, checkpoint):
    train, evaluation = files
    arguments = ("classify", "--model", checkpoint, "--train", train, "--eval", evaluation, "--out", tmp_path / "out")
    done = invoke(*arguments, "--epochs", 1, "--batch-size", 8, "--column", "text=text", "--max-length", 16)
    assert done.exit_code == 0, done.output
    assert "text = text, label = label" in done.output
    assert "out: accuracy 0." in done.output.replace("\n", "")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_mistake_is_one_line_and_status_two(files, tmp_path, checkpoint):
    train, evaluation = files
    evaluation.write_text("text,label\nred dog,purple\n")
    done = invoke("classify", "--model", checkpoint, "--train", train, "--eval", evaluation, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "got 'purple'" in done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("column", ["text", "body=text", "text="])
def test_columns_are_named_by_role(files, tmp_path, checkpoint, column):
    train, evaluation = files
    out = tmp_path / "out"
    done = invoke("classify", "--model", checkpoint, "--train", train, "--eval", evaluation, "--out", out, "--column", column)
    assert done.exit_code == 2
    assert "ROLE=NAME" in done.output
