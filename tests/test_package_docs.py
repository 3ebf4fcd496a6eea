"""The docstring of every package lists its files, each once, in reading order."""

import ast
from pathlib import Path

import pytest

import fastbert

PACKAGES = sorted(file.parent for file in Path(fastbert.__file__).parent.glob("*/__init__.py"))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_the_docstring_lists_every_file(package):
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
    listed = [line.split()[0] for line in docstring.partition("In reading order:")[2].splitlines() if line]
    assert sorted(listed) == sorted(file.stem for file in package.glob("*.py") if file.stem != "__init__")
