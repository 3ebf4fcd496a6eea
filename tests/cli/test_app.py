"""The list of commands: its version and its help, which must be quick."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from typer.testing import CliRunner

import fastbert
from fastbert.cli.app import app


def test_version():
    done = CliRunner().invoke(app, ["--version"])
    libraries = "".join(f"{name} {version(name)}\n" for name in ("torch", "triton", "transformers"))
    assert (done.exit_code, done.stdout, done.stderr) == (0, f"fastbert {fastbert.__version__}\n{libraries}", "")


def test_help_and_mistakes_come_without_loading_torch():
    """They are what is asked for most, and quick."""
    code = (
        "import sys; from fastbert.cli.app import app; app(sys.argv[1:], standalone_mode=False); print('torch' in sys.modules)"
    )
    for words in (["--help"], ["pretrain", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
        assert done.stdout.rstrip().endswith("False")


def test_wrong_paths_and_options_are_answered_without_loading_torch(tmp_path):
    """They are mistakes of typing: the answer must not take the seconds that torch needs."""
    small = Path(fastbert.__file__).parent / "small"
    (tmp_path / "texts.txt").write_text("the cat\n")
    (tmp_path / "exists.jsonl").write_text("mine\n")
    (tmp_path / "table.csv").write_text("text,label\nthe cat,y\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine\n")
    training = "--train table.csv --eval table.csv"
    lines = [
        "classify --model x --file missing.txt",
        "classify --model ./nowhere a",
        f"embed --model {small} --file texts.txt --out exists.jsonl",
        f"embed --model {small} --file texts.txt --out nowhere/new.jsonl",
        "fill-mask --model mine a",
        "answer --model mine --always-answer --null-threshold 1 a b",
        "tag --model texts.txt a",
        "next --model ./nowhere a b",
        "explain ./nowhere",
        "verify ./nowhere",
        "demo ./nowhere",
        "export mine --to torch-export --out new.pt2",
        f"export {small} --to torch-export --out new.bin",
        "tune --rows 3",
        "tokenizer missing.txt --out new",
        "prepare texts.txt --tokenizer ./nowhere --out new",
        "masks mine",
        "pretrain --data mine --steps 1 --out new",
        "pretrain --data mine --steps 1 --out mine",
        "pretrain --data mine --steps 1 --out new --config bert-huge",
        "replay nowhere.json",
        f"finetune classify --model ./nowhere --out new {training}",
        f"finetune classify --model {small} --out mine {training}",
        f"finetune classify --model {small} --out new --epochs 0 {training}",
        "run nowhere.py",
    ]
    code = (
        "import json, sys\n"
        "from typer.testing import CliRunner\n"
        "from fastbert.cli.app import app\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    done = CliRunner().invoke(app, line.split())\n"
        "    print(line, done.exit_code, 'torch' in sys.modules, done.stderr.splitlines()[-1])\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, json.dumps(lines)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    found = done.stdout.splitlines()
    assert len(found) == len(lines)
    assert not [one for line, one in zip(lines, found) if not one.startswith(f"{line} 2 False fastbert: ")]
