"""Files are written whole or not at all, and errors name them."""

import errno
import json
import shutil

import pytest

from fastbert.utils.errors import InputError
from fastbert.utils.files import check_room, copy_whole, size_of, strict_json, write_whole


@pytest.mark.parametrize("content", ["text ä", b"bytes", lambda handle: handle.write(b"written")])
def test_a_file_is_written_and_nothing_else_stays(content, tmp_path):
    file = tmp_path / "file"
    file.write_text("old")
    write_whole(file, content)
    assert file.read_bytes() in ("text ä".encode(), b"bytes", b"written")
    assert list(tmp_path.iterdir()) == [file]


def test_an_interrupted_write_leaves_the_old_file_and_a_full_disk_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")

    def fails(handle):
        handle.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left on device") as error:
        write_whole(file, fails)
    assert error.value.filename == str(file)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_copy_replaces_what_is_there(tmp_path):
    source, file = tmp_path / "source", tmp_path / "file"
    source.write_text("new")
    file.write_text("old")
    copy_whole(source, file)
    assert file.read_text() == "new"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "source"]


def test_room_is_asked_of_the_nearest_folder_that_exists(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    check_room(tmp_path / "a" / "b", 1000, "a file")
    with pytest.raises(InputError, match="expected 1,001 bytes of disk for a file, got 1,000 free in"):
        check_room(tmp_path / "a" / "b", 1001, "a file")


def test_sizes_leave_out_hidden_files(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_bytes(b"12345")
    (tmp_path / ".b").write_bytes(b"123")
    assert size_of(tmp_path) == 5
    assert size_of(tmp_path / "none") == 0


def test_json_without_nan_and_infinity():
    text = strict_json({"a": [float("nan"), 1.5], "b": (float("inf"), "ä")})
    assert json.loads(text, parse_constant=pytest.fail) == {"a": [None, 1.5], "b": [None, "ä"]}
