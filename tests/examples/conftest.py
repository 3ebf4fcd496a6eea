"""The examples as modules, and tiny checkpoints for them."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.inference.tiny_checkpoints import save

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name: str) -> ModuleType:
    """The module of an example's file, run anew."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("examples") / "encoder", "BertModel")


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory) -> str:
    names = {0: "negative", 1: "neutral", 2: "positive"}
    folder = tmp_path_factory.mktemp("examples") / "classifier"
    return save(folder, "BertForSequenceClassification", id2label=names, label2id={name: i for i, name in names.items()})
