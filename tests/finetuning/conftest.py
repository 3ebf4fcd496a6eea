"""One tiny checkpoint for all tests of the folder."""

import io

import pytest
from rich.console import Console

from fastbert.finetuning import plots
from tests.finetuning.small_tasks import write_checkpoint
from tests.pictures import stub_pictures


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def drawn_pictures() -> None:
    """Pictures are drawn in tests that ask for this."""


@pytest.fixture(autouse=True)
def _stub_pictures(request, monkeypatch) -> None:
    stub_pictures(request, monkeypatch, plots)
