"""`fastbert run`: programs that know nothing of fastbert, in processes of their own, beside what Python makes of them."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from fastbert.cli import scripts
from fastbert.cli.app import app

PROGRAM = """
import os
os.environ["HF_HOME"] = "/somewhere"
import multiprocessing
import sys
import helper

def registered(_):
    construction = sys.modules["fastbert.model.construction"]
    return construction.is_registered(), construction._policy.exact

def built():
    from huggingface_hub.constants import HF_HOME
    from transformers import BertConfig, BertModel
    sizes = dict(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    model = BertModel(BertConfig(**sizes))
    return type(model).__module__.split(".")[0], model.__dict__["_padding_policy"].exact, HF_HOME

if __name__ == "__main__":
    print(*built(), sys.argv, helper.NAME)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(*pool.map(registered, [0]))
    sys.exit(7)
"""
# What a program may see of how it was started.
FACTS = """
import atexit, os, pickle, signal, sys
class Mine: pass
atexit.register(lambda: print(len(pickle.dumps(Mine()))))
print(__file__, sys.argv, sys.path, __spec__ and __spec__.name, __package__)
print(sys.flags, sys._xoptions, sys.warnoptions, sys.stdout.write_through)
print(signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), sys.excepthook, sys.gettrace())
print(sorted({"torch", "transformers", "numpy", "typer"} & set(sys.modules)), sys.modules["sitecustomize"].__file__)
print(sys.modules["__main__"].Mine is Mine, __builtins__)
raise ValueError("of the program")
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "helper.py").write_text("NAME = 'beside it'\n")
    (tmp_path / "facts.py").write_text(FACTS)
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text("print('sitecustomize of the user')\n")
    return tmp_path


def python(*words, cwd, **variables):
    path = os.pathsep.join([str(cwd / "site"), str(scripts.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path} | variables
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def test_a_program_is_served_from_its_first_line_and_so_are_processes_that_it_starts(folder):
    words = ("--epochs", "3", "--padding", "zeros")
    done = python("-m", "fastbert", "run", "program.py", *words, cwd=folder)
    lines = done.stdout.replace("sitecustomize of the user", "\n").split("\n")  # which several processes print at a time
    said = [f"fastbert True /somewhere {['program.py', *words]} beside it", "(True, True)"]
    assert [line for line in lines if line] == said
    assert done.returncode == 7
    assert done.stderr == (
        "fastbert run: every BERT that transformers builds is fastbert's; at padding, token states and logits hold "
        "transformers' values (--padding zeros is faster, where nothing reads them)\n"
    )


@pytest.mark.parametrize("words", [["facts.py", "a", "--b"], ["-m", "facts", "a"]], ids=["file", "module"])
def test_all_else_is_as_python_does_it(words, folder):
    options = ["-u", "-X", "utf8", "-W", "error::SyntaxWarning"]
    expected = python(*options, *words, cwd=folder)
    done = python(*options, "-m", "fastbert", "run", "--padding", "zeros", *words, cwd=folder)
    assert "of the program" in expected.stderr
    banner, _, rest = done.stderr.partition("\n")
    assert banner.endswith("token states and logits hold zeros")
    assert rest == expected.stderr
    assert done.stdout.removeprefix("sitecustomize of the user\n") == expected.stdout  # that of `python -m fastbert` itself
    assert done.returncode == expected.returncode == 1


@pytest.fixture
def started(monkeypatch):
    """What `fastbert run` would put into its place, instead of doing so: (program, words, environment)."""
    found = []
    monkeypatch.setattr(os, "execve", lambda *given: found.append(given))
    return found


@pytest.mark.parametrize(
    ("variable", "options", "chosen", "values"),
    [
        (None, [], "1", "transformers' values"),
        ("0", [], "1", "transformers' values"),
        ("1", [], "1", "transformers' values"),
        ("exact", [], "exact", "transformers' values"),
        ("zeros", [], "zeros", "hold zeros"),
        ("exact", ["--padding", "zeros"], "zeros", "hold zeros"),
        ("zeros", ["--padding", "exact"], "exact", "transformers' values"),
    ],
)
def test_the_option_then_the_variable_choose_padding(variable, options, chosen, values, started, monkeypatch):
    if variable is not None:
        monkeypatch.setenv("FASTBERT_REGISTER", variable)
    assert CliRunner().invoke(app, ["run", *options, __file__, "--padding", "x"]).exit_code == 0
    [(executable, words, environment)] = started
    assert executable == words[0] == sys.executable
    assert words[-3:] == [__file__, "--padding", "x"]
    assert environment["FASTBERT_REGISTER"] == chosen
    assert values in environment["FASTBERT_RUN_ANNOUNCEMENT"]


def test_the_package_is_found_where_only_the_folder_of_python_m_leads_to_it(started, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/one")
    monkeypatch.setattr(sys, "path", [str(scripts.ROOT), "/other"])
    CliRunner().invoke(app, ["run", __file__])
    monkeypatch.setattr(sys, "path", ["/other", str(scripts.ROOT)])
    CliRunner().invoke(app, ["run", __file__])
    bootstrap = str(scripts.BOOTSTRAP)
    assert [environment["PYTHONPATH"].split(os.pathsep) for _, _, environment in started] == [
        [bootstrap, "/one", str(scripts.ROOT)],
        [bootstrap, "/one"],
    ]


def test_a_program_that_is_not_there_is_one_line(started):
    done = CliRunner().invoke(app, ["run", "nowhere.py"])
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert "expected a Python file, got nowhere.py, which is no file" in done.stderr
    assert not started


@pytest.mark.parametrize("option", ["ignore_environment", "no_site"])
def test_a_python_that_would_not_be_served_is_refused(option, started, monkeypatch):
    flags = SimpleNamespace(**{"ignore_environment": 0, "no_site": 0, option: 1})
    monkeypatch.setattr(sys, "flags", flags)
    done = CliRunner().invoke(app, ["run", __file__])
    assert done.exit_code == 2
    assert done.stderr.startswith("fastbert: expected Python without -E, -I and -S")
    assert not started


def test_a_wrong_variable_is_one_line(folder):
    done = python("-m", "fastbert", "run", "facts.py", cwd=folder, FASTBERT_REGISTER="true")
    assert done.stderr == "fastbert: expected FASTBERT_REGISTER to be 0, 1, zeros or exact, got 'true'\n"
    assert done.returncode == 2


def test_a_python_without_fastbert_runs_as_ever(folder):
    """Another environment's, started by a program: the bootstrap is on its PYTHONPATH too."""
    path = os.pathsep.join([str(scripts.BOOTSTRAP), str(folder / "site")])
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import sys, sitecustomize; print(sys.path[1:3])"],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "FASTBERT_REGISTER": "1"},
    )
    assert done.stderr == ""
    assert done.stdout.startswith("sitecustomize of the user\n")
    assert str(scripts.BOOTSTRAP) not in done.stdout
