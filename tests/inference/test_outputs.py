"""Outputs that exist: refused, continued, or replaced, by one rule for every command of inference."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fastbert.cli import inference_run
from fastbert.inference import engine
from fastbert.inference.embedding import Embedding

runner = CliRunner()
REFUSED = "expected a new output, --resume, which continues it, or --overwrite, which starts over, got"


@pytest.fixture
def file(tmp_path) -> Path:
    found = tmp_path / "texts.txt"
    found.write_text("the cat sat on the mat\n" * 30 + "a dog\n")
    return found


@pytest.fixture
def call(app, checkpoints, file, tmp_path):
    def run(name: str, class_name: str, *arguments, status: int = 0, out: str = "a.jsonl"):
        words = [name, "--model", checkpoints[class_name], "--file", file, "--out", tmp_path / out, "--precision", "float32"]
        done = runner.invoke(app, [str(word) for word in [*words, *arguments]])
        assert done.exit_code == status, done.output + repr(done.exception)
        return done

    return run


def no_computing(monkeypatch) -> None:
    monkeypatch.setattr(engine, "stream", None)
    monkeypatch.setattr(inference_run, "_run", None)


@pytest.mark.parametrize("out", ["a.jsonl", "a.npy"])
def test_a_finished_output_is_not_computed_again(call, tmp_path, monkeypatch, out):
    call("embed", "BertModel", out=out)
    before = (tmp_path / out).read_bytes()
    no_computing(monkeypatch)
    done = call("embed", "BertModel", status=2, out=out)
    assert f"{REFUSED} {tmp_path / out}, which is finished" in done.stderr
    done = call("embed", "BertModel", "--resume", out=out)
    assert f"{tmp_path / out}: is finished, with these options; nothing is left to compute: 31 rows" in done.stderr
    assert (tmp_path / out).read_bytes() == before


@pytest.mark.parametrize(
    ("name", "class_name", "words", "message"),
    [
        (
            "classify",
            "BertForSequenceClassification",
            [],
            "expected command 'embed', with which {out} was started, got 'classify'",
        ),
        ("embed", "BertForTokenClassification", [], "expected model name "),
        (
            "embed",
            "BertModel",
            ["--pooling", "cls"],
            "expected options modules 'mean pooling, normalised', with which {out} was started",
        ),
        ("embed", "BertModel", ["--dtype", "float16"], "expected options dtype 'float32', with which {out} was started"),
    ],
)
def test_resume_of_something_else_is_refused(call, tmp_path, name, class_name, words, message):
    out = tmp_path / "a.jsonl"
    call("embed", "BertModel")
    before = out.read_bytes()
    done = call(name, class_name, *words, "--resume", status=2)
    assert message.format(out=out) in done.stderr
    assert "--overwrite, which starts over, accepts it" in done.stderr
    assert out.read_bytes() == before


def test_another_input_or_a_changed_or_unknown_output_is_refused(call, file, tmp_path):
    call("embed", "BertModel")
    out, record = tmp_path / "a.jsonl", tmp_path / ".a.jsonl.record.json"
    text = file.read_text()
    file.write_text(text.replace("mat", "rug"))
    assert "expected the input with which" in call("embed", "BertModel", "--resume", status=2).stderr
    file.write_text(text)
    whole = out.read_bytes()
    out.write_bytes(whole[:-1])
    assert f"expected {out} as it was written, got another one" in call("embed", "BertModel", "--resume", status=2).stderr
    out.write_bytes(whole)
    record.unlink()
    assert "got none that can be read; --overwrite replaces it" in call("embed", "BertModel", "--resume", status=2).stderr
    assert f"{REFUSED} {out}, which exists" in call("embed", "BertModel", status=2).stderr
    assert out.read_bytes() == whole


def test_overwrite_replaces_when_the_new_is_whole(call, tmp_path, monkeypatch):
    call("embed", "BertModel", out="a.npy")
    old = np.load(tmp_path / "a.npy")
    with monkeypatch.context() as patched:
        patched.setattr(Embedding, "forward", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        done = call("embed", "BertModel", "--pooling", "cls", "--overwrite", out="a.npy", status=130)
    assert done.stderr.splitlines()[-1] == "fastbert: interrupted; --resume continues after row 0"
    assert np.array_equal(np.load(tmp_path / "a.npy"), old)
    call("embed", "BertModel", "--pooling", "cls", "--resume", out="a.npy")
    assert not np.array_equal(np.load(tmp_path / "a.npy"), old)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.npy.record.json", "a.npy", "texts.txt"]


def test_a_kill_between_the_last_two_steps_leaves_a_finished_output(call, tmp_path, monkeypatch):
    """The file has its name, and the state of the unfinished one is still there."""
    call("embed", "BertModel")
    (tmp_path / "a.jsonl.partial.json").write_text("{}")
    no_computing(monkeypatch)
    assert "is finished" in call("embed", "BertModel", "--resume").stderr
    assert not (tmp_path / "a.jsonl.partial.json").exists()


def test_a_device_is_never_replaced(call, tmp_path):
    """As /dev/null would be by root."""
    import os

    os.mkfifo(tmp_path / "pipe")
    for flag in ([], ["--overwrite"], ["--resume"]):
        done = call("embed", "BertModel", *flag, out="pipe", status=2)
        assert f"expected a file to write to, got {tmp_path / 'pipe'}, which is none" in done.stderr
    assert (tmp_path / "pipe").is_fifo()


def test_a_second_run_into_one_file_is_refused(checkpoints, file, call, tmp_path):
    """While the first one waits for its input."""
    code = "import typer; from fastbert.cli import inference as cli; typer.run(cli.embed)"
    words = ["--model", checkpoints["BertModel"], "--out", str(tmp_path / "a.jsonl"), "--precision", "float32", "-"]
    lock = tmp_path / ".a.jsonl.lock"
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 100
        while not (tmp_path / "a.jsonl.partial").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        assert json.loads(lock.read_text())["process"] == process.pid
        for options in ((), ("--overwrite",)):  # nor is it called unfinished
            done = call("embed", "BertModel", *options, status=2)
            assert f"expected no other run that writes to {tmp_path / 'a.jsonl'}, got process {process.pid} on" in done.stderr
        process.communicate("the cat\n", timeout=100)
    assert process.returncode == 0
    assert not lock.exists()
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 1
