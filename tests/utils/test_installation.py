"""The command for an extra, for each way in which the package may have been installed."""

import json
import shlex
import sys
from importlib import metadata
from pathlib import Path

import pytest

from fastbert.utils import installation
from fastbert.utils.installation import NAME, install_command

COMMIT = "7921be1537eac1e97bc40179a57f0349c2aee67d"


@pytest.fixture
def install_from(tmp_path, monkeypatch):
    """Makes this process see a distribution with the given direct_url.json, or none, and pip first on the path."""

    def install(origin: dict | None) -> None:
        folder = tmp_path / "site" / f"{NAME.replace('-', '_')}-0.1.dist-info"
        folder.mkdir(parents=True)
        lines = ["Metadata-Version: 2.4", f"Name: {NAME}", "Version: 0.1", "Requires-Dist: torch>=2.11"]
        lines += ["Requires-Dist: triton>=3.6; sys_platform == 'linux'", 'Requires-Dist: accelerate>=1.3; extra == "train"']
        lines += [
            'Requires-Dist: winloop; sys_platform == "never" and extra == "train"',
            'Requires-Dist: onnx; extra == "export"',
        ]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")
        if origin is not None:
            (folder / "direct_url.json").write_text(json.dumps(origin))
        monkeypatch.setattr(metadata, "distribution", lambda name: {NAME: metadata.PathDistribution(folder)}[name])

    monkeypatch.setattr(installation.shutil, "which", lambda name: str(Path(sys.executable).with_name(name)))
    monkeypatch.setattr(installation.importlib.util, "find_spec", lambda name: name)  # uv's environments have no pip
    return install


@pytest.fixture
def clone(tmp_path) -> Path:
    folder = tmp_path / "a clone"
    folder.mkdir()
    return folder


def test_in_a_clone(install_from, clone, monkeypatch):
    install_from({"url": clone.as_uri(), "dir_info": {"editable": True}})
    assert install_command("train") == f"pip install -e '{clone}[train]'"
    monkeypatch.chdir(clone)
    assert install_command("train") == "pip install -e '.[train]'"


def test_from_a_folder(install_from, clone):
    install_from({"url": clone.as_uri(), "dir_info": {}})
    assert install_command("export") == f"pip install '{clone}[export]'"


def test_from_a_wheel(install_from, tmp_path):
    wheel = tmp_path / "fastbert_triton-0.1-py3-none-any.whl"
    wheel.touch()
    install_from({"url": wheel.as_uri(), "archive_info": {"hashes": {"sha256": "0" * 64}}})
    assert install_command("train") == f"pip install '{wheel}[train]'"


def test_from_a_wheel_that_is_gone(install_from, tmp_path):
    """What the extra asks for on this system, since the package cannot be had from where it was."""
    install_from({"url": (tmp_path / "gone.whl").as_uri(), "archive_info": {}})
    assert install_command("train") == "pip install 'accelerate>=1.3'"


def test_from_a_wheel_elsewhere(install_from):
    install_from({"url": "https://example.org/fastbert_triton-0.1-py3-none-any.whl", "archive_info": {}})
    assert install_command("train") == f"pip install '{NAME}[train] @ https://example.org/fastbert_triton-0.1-py3-none-any.whl'"


@pytest.mark.parametrize("inside", [None, "python"])
def test_from_git(install_from, inside):
    place = {"url": "https://example.org/fastbert.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}}
    install_from(place if inside is None else {**place, "subdirectory": inside})
    end = "" if inside is None else f"#subdirectory={inside}"
    assert install_command("demo") == f"pip install '{NAME}[demo] @ git+https://example.org/fastbert.git@{COMMIT}{end}'"


def test_from_an_index(install_from):
    install_from(None)
    assert install_command("train") == f"pip install '{NAME}[train]'"


def test_run_from_a_checkout_that_is_not_installed(install_from, monkeypatch):
    def absent(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    checkout = Path(installation.__file__).resolve().parents[2]
    assert (checkout / "pyproject.toml").is_file()
    monkeypatch.chdir(checkout.parent)
    assert shlex.split(install_command("train")) == ["pip", "install", "-e", f"{checkout}[train]"]


def test_pip_of_this_python(install_from, tmp_path, monkeypatch):
    install_from(None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(installation.shutil, "which", lambda name: "/elsewhere/bin/pip")
    assert install_command("train") == f"{sys.executable} -m pip install '{NAME}[train]'"
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    assert install_command("train") == f"{Path('.venv', 'bin', 'python')} -m pip install '{NAME}[train]'"
    monkeypatch.setattr(installation.importlib.util, "find_spec", lambda name: None)
    assert install_command("train") == f"uv pip install --python {Path('.venv', 'bin', 'python')} '{NAME}[train]'"
