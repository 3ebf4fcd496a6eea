"""`fastbert run`: programs that know nothing of fastbert, in processes of their own."""

import os
import subprocess
import sys

import pytest

SIZES = "vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8"
PROGRAM = f"""
import sys
from transformers import BertConfig, BertModel
import helper
if __name__ == "__main__":
    model = BertModel(BertConfig({SIZES}))
    print(type(model).__module__.split(".")[0], sys.argv, helper.NAME)
    sys.exit(7 if "--fail" in sys.argv else 0)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "helper.py").write_text("NAME = 'beside it'\n")
    (tmp_path / "broken.py").write_text("open('/does/not/exist')\n")
    return tmp_path


def run(*words, cwd):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "fastbert", "run", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def test_a_program_is_run_unchanged_with_its_own_arguments_and_status(folder):
    program = folder / "program.py"
    done = run(program, "--epochs", "3", "--padding", "mine", "--fail", cwd="/")
    assert done.stdout == f"fastbert ['{program}', '--epochs', '3', '--padding', 'mine', '--fail'] beside it\n"
    assert done.returncode == 7
    assert done.stderr.splitlines()[0].startswith("fastbert run: every BERT is fastbert's; at padding, token states hold zeros")


def test_a_module_is_run(folder):
    done = run("--padding", "exact", "-m", "program", "x", cwd=folder)
    assert done.stdout.startswith("fastbert [")
    assert "'x'] beside it" in done.stdout
    assert "transformers' values" in done.stderr
    assert done.returncode == 0


def test_an_error_of_the_program_keeps_its_traceback(folder):
    done = run(folder / "broken.py", cwd=folder)
    assert done.returncode == 1
    assert "broken.py" in done.stderr
    assert "FileNotFoundError: [Errno 2] No such file or directory: '/does/not/exist'" in done.stderr


def test_a_program_that_is_not_there_is_one_line(folder):
    done = run("nowhere.py", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "expected a Python file, got nowhere.py" in done.stderr
