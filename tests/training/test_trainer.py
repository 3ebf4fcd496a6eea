"""Which errors of libraries are those of a full disk."""

import pytest
from safetensors import SafetensorError

from fastbert.training.trainer import raise_disk_error


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:862] . PytorchStreamWriter failed writing file data/0"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_refused_write_is_one_line_that_says_what_was_written(error):
    with pytest.raises(OSError, match="expected to write checkpoint-3 in out, got: ") as found:
        raise_disk_error(error, "checkpoint-3 in out")
    assert "\n" not in str(found.value)
    assert found.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA out of memory"), SafetensorError("invalid header"), ValueError("I/O error")]
)
def test_any_other_error_is_left_to_its_caller(error):
    raise_disk_error(error, "checkpoint-3 in out")
