"""`.ci/install.py`: which build of torch is installed, and that the choice is said before anything is downloaded."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def install(monkeypatch):
    """The script, which runs no command: (commands that it would run, their exit statuses by a word in them)."""
    specification = importlib.util.spec_from_file_location("install_script", ROOT / ".ci" / "install.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    module.commands, module.statuses = [], {}

    def run(*command: str) -> int:
        module.commands.append(" ".join(command).replace(sys.executable, "python"))
        return next((status for word, status in module.statuses.items() if word in command), 0)

    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(module.sys, "platform", "linux")
    for name, value in (("installed_torch", None), ("builds_of_pip", []), ("has_nvidia_driver", False)):
        set_answer(monkeypatch, module, name, value)
    return module


def set_answer(monkeypatch, module, name, value) -> None:
    monkeypatch.setattr(module, name, lambda *arguments: value)


def of_uv(module, build: str) -> list[str]:
    torch = f"torch=={module.pinned_torch()}"
    return ["python -m pip install uv", f"python -m uv pip install --python python --torch-backend {build} --no-deps {torch}"]


def of_pip(*extras: str) -> str:
    return f"python -m pip install -c {ROOT / 'constraints.txt'} -e {ROOT}[{','.join(extras)}]"


def test_without_a_driver_the_cpu_build(install, capsys):
    assert install.main(["demo", "test"]) == 0
    assert install.commands == [*of_uv(install, "cpu"), of_pip("demo", "test")]
    said = capsys.readouterr().out
    assert "the CPU build" in said
    assert "0.2 GB" in said
    assert "TORCH=pip takes PyPI's with CUDA, 2.5 GB" in said


def test_with_a_driver_what_pip_finds(install, monkeypatch, capsys):
    set_answer(monkeypatch, install, "has_nvidia_driver", True)
    assert install.main(["demo"]) == 0
    assert install.commands == [of_pip("demo")]
    assert "with CUDA, 2.5 GB; TORCH=cpu takes the CPU build" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value"), [("installed_torch", "2.13.0+cpu"), ("builds_of_pip", ["2.13.0+cpu"])], ids=["installed", "configured"]
)
def test_a_build_that_is_there_already_is_taken(install, monkeypatch, name, value):
    set_answer(monkeypatch, install, name, value)
    assert install.main(["demo"]) == 0
    assert install.commands == [of_pip("demo")]


def test_elsewhere_pypi_has_no_cuda(install, monkeypatch):
    monkeypatch.setattr(install.sys, "platform", "darwin")
    assert install.main(["demo"]) == 0
    assert install.commands == [of_pip("demo")]


def test_a_choice_is_followed_or_fails(install, capsys):
    assert install.main(["--torch", "pip", "demo"]) == 0
    assert install.commands == [of_pip("demo")]
    install.commands.clear()
    assert install.main(["--torch", "cu130", "demo"]) == 0
    assert install.commands == [*of_uv(install, "cu130"), of_pip("demo")]
    install.commands.clear()
    install.statuses["uv"] = 2
    assert install.main(["--torch", "cu130", "demo"]) == 2
    assert of_pip("demo") not in install.commands


def test_a_cpu_build_that_cannot_be_had_is_said(install, capsys):
    install.statuses["--torch-backend"] = 2
    assert install.main(["demo"]) == 0
    assert install.commands == [*of_uv(install, "cpu"), of_pip("demo")]
    assert "The CPU build cannot be had here: PyPI's follows, 2.5 GB with CUDA. Ctrl-C stops." in capsys.readouterr().out


def test_builds_that_pip_finds(install, monkeypatch):
    answer = "torch (2.15.0)\nAvailable versions: 2.15.0, 12.13.0+cpu, 2.13.0+cpu, 2.13.0, 2.12.1+cpu\n"
    monkeypatch.undo()
    monkeypatch.setattr(install.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, stdout=answer))
    assert install.builds_of_pip("2.13.0") == ["2.13.0+cpu"]
    assert install.builds_of_pip("2.15.0") == []


def test_an_old_python_is_named(install, monkeypatch):
    monkeypatch.setattr(install.sys, "version_info", (3, 9, 1))
    with pytest.raises(SystemExit, match=r"expected Python 3.10 or newer, got 3\.9: make PYTHON="):
        install.main(["demo"])
    assert install.commands == []


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_gives_another_python_its_own_environment():
    # without what the `make` that runs this test hands down
    own = {
        key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKEOVERRIDES", "PYTHON", "VENV", "TORCH")
    }

    def planned(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", "-n", "-B", "demo", *words], cwd=ROOT, env=own, capture_output=True, text=True, check=False
        )

    assert "-m venv .venv\n" in planned().stdout
    other = planned(f"PYTHON={sys.executable}").stdout
    assert f"{sys.executable} -m venv .venv-{sys.version_info[0]}.{sys.version_info[1]}\n" in other
    assert "install.py --torch cu130 demo" in planned("TORCH=cu130").stdout
    nowhere = planned("PYTHON=/nowhere/python")
    assert nowhere.returncode == 2
    assert "expected an interpreter, got PYTHON=/nowhere/python" in nowhere.stderr
