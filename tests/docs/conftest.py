"""A folder with the files that the documentation speaks of, under the names it uses."""

import shutil
from pathlib import Path

import pytest

from tests.inference.tiny_checkpoints import save


@pytest.fixture(scope="session")
def _named_files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("named")
    names = {0: "negative", 1: "positive"}
    labels = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    save(folder / "your" / "checkpoint", "BertForSequenceClassification", **labels)
    shutil.copytree(folder / "your" / "checkpoint", folder / "my-model")
    (folder / "your.txt").write_text("the dog sat down\na cat\n")
    (folder / "new.csv").write_text("id,text\n1,the dog sat down\n2,a cat\n")
    return folder


@pytest.fixture
def named_files(_named_files, tmp_path, monkeypatch) -> Path:
    """The working directory of the test: a copy of its own."""
    folder = tmp_path / "here"
    shutil.copytree(_named_files, folder)
    monkeypatch.chdir(folder)
    return folder
