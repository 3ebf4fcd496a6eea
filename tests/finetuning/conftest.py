"""One tiny checkpoint for all tests of the folder."""

import io

import pytest
from rich.console import Console

from tests.finetuning.small_tasks import write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)
