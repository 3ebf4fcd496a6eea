"""The wheel holds the kernels where an installed fastbert finds them, and nothing named `kernels` at the top."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    if importlib.util.find_spec("setuptools") is None:  # not imported: it takes the place of a distutils already there
        pytest.skip("setuptools is not installed: no wheel can be built")
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy: setuptools builds beside the sources, where two test processes would meet.
    source = folder / "source"
    for name in ("fastbert", "kernels"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    tuned = source / "kernels" / "matmul" / "tuned"
    tuned.mkdir(exist_ok=True)
    (tuned / "some-gpu.json").write_text("{}")  # as a table measured on a GPU would lie there
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_wheel_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    packed = {name for name in names if name.endswith(".py")}
    assert packed == {
        *(f"fastbert/{file.relative_to(ROOT / 'fastbert')}" for file in (ROOT / "fastbert").rglob("*.py")),
        *(f"fastbert/_kernels/{file.relative_to(ROOT / 'kernels')}" for file in (ROOT / "kernels").rglob("*.py")),
    }
    assert "fastbert/py.typed" in names
    assert "fastbert/_kernels/specs/proofs.json" in names
    assert "fastbert/_kernels/matmul/tuned/some-gpu.json" in names
    for file in ("config.json", "model.safetensors", "tokenizer.json", "README.md"):
        assert f"fastbert/small/{file}" in names
    top = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert top == {"fastbert"}


def test_installed_wheel_imports_its_own_kernels(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = "from fastbert.kernels import functional; import fastbert.kernels.attention.schedule; print(functional.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    # -P and another folder: neither the checkout nor its editable install may answer first.
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == site / "fastbert" / "_kernels"


def test_no_init_makes_the_kernels_folder_importable():
    assert not (ROOT / "kernels" / "__init__.py").exists()
