"""Prepared data that the whole folder's tests share."""

import io
import json

import pytest
from rich.console import Console

from fastbert.pretraining import plot
from tests.pictures import stub_pictures
from tests.pretraining.small_data import TINY, Prepared, write_data


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Prepared:
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "config.json").write_text(json.dumps(TINY))
    write_data(folder / "data")
    write_data(folder / "held_out", count=40, seed=1)
    return Prepared(folder / "data", folder / "held_out", folder / "config.json")


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def drawn_pictures() -> None:
    """Pictures are drawn in tests that ask for this."""


@pytest.fixture(autouse=True)
def _stub_pictures(request, monkeypatch) -> None:
    stub_pictures(request, monkeypatch, plot)
