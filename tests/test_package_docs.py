"""The docstring of every package lists its files and folders, each once, in reading order."""

import ast
from pathlib import Path

import pytest

import fastbert

ROOT = Path(fastbert.__file__).parent
PACKAGES = sorted(file.parent for file in ROOT.rglob("*/__init__.py"))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: str(package.relative_to(ROOT)))
def test_the_docstring_lists_every_file(package):
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
    listed = [line.split()[0] for line in docstring.partition("In reading order:")[2].splitlines() if line]
    files = [file.stem for file in package.glob("*.py") if file.stem != "__init__"]
    folders = [f"{file.parent.name}/" for file in package.glob("*/__init__.py")]
    assert sorted(listed) == sorted(files + folders)
