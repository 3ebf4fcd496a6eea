"""One tiny checkpoint for all tests of the folder."""

import pytest

from tests.finetuning.small_tasks import write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("models") / "tiny"))
