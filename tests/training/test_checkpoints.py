"""Atomic checkpoints: a folder counts only as what its manifest says."""

import json
from pathlib import Path

import pytest

from fastbert.training import checkpoints


def write(out: Path, step: int, content: bytes = b"weights") -> Path:
    folder = checkpoints.staging(out, step)
    (folder / "inner").mkdir(parents=True)
    (folder / "model.bin").write_bytes(content)
    (folder / "inner" / "state.bin").write_bytes(b"state")
    return checkpoints.commit(folder, out, step, {"seconds": 1.5})


def test_a_committed_folder_is_found_with_its_facts(tmp_path):
    folder = write(tmp_path, 3)
    assert folder == tmp_path / "checkpoint-3"
    manifest = checkpoints.verify(folder)
    assert (manifest["step"], manifest["seconds"]) == (3, 1.5)
    assert set(manifest["files"]) == {"model.bin", "inner/state.bin"}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_the_latest_is_by_number_and_the_last_good_one_is_taken(tmp_path):
    for step in (9, 10, 11):
        write(tmp_path, step)
    (tmp_path / "checkpoint-x").mkdir()
    assert [path.name for path in checkpoints.all_of(tmp_path)] == ["checkpoint-11", "checkpoint-10", "checkpoint-9"]
    (tmp_path / "checkpoint-11" / "model.bin").write_bytes(b"Weights")
    good, refused = checkpoints.last_good(tmp_path)
    assert good == tmp_path / "checkpoint-10"
    assert refused == {tmp_path / "checkpoint-11": "checkpoint-11: expected other bytes in model.bin, its sum differs"}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.bin").unlink(), "expected the file model.bin, got none"),
        (lambda folder: (folder / "model.bin").write_bytes(b"w"), "expected 7 bytes in model.bin, got 1"),
        (lambda folder: (folder / "manifest.json").unlink(), "expected a whole manifest.json, got FileNotFoundError"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "expected a whole manifest.json, got JSONDecodeError"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "expected a whole manifest.json, got TypeError"),
    ],
)
def test_damage_is_named(damage, message, tmp_path):
    folder = write(tmp_path, 1)
    damage(folder)
    with pytest.raises(checkpoints.Damaged, match=f"checkpoint-1: {message}"):
        checkpoints.verify(folder)
    assert checkpoints.last_good(tmp_path)[0] is None


def test_a_damaged_one_is_set_aside_and_can_be_written_again(tmp_path):
    for number in range(3):
        aside = checkpoints.set_aside(write(tmp_path, 5))
        assert aside.name == "refused-checkpoint-5" + ("", "-1", "-2")[number]
    assert checkpoints.all_of(tmp_path) == []


def test_a_new_folder_replaces_the_one_of_its_name(tmp_path):
    write(tmp_path, 2, b"old")
    write(tmp_path, 2, b"new")
    assert (tmp_path / "checkpoint-2" / "model.bin").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_only_the_last_ones_are_kept_and_unfinished_ones_removed(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    checkpoints.staging(tmp_path, 4).mkdir()
    checkpoints.keep_last(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3"]


def test_a_manifest_is_json_that_names_sizes_and_sums(tmp_path):
    content = json.loads((write(tmp_path, 1) / "manifest.json").read_text())
    size, digest = content["files"]["model.bin"]
    assert (size, len(digest)) == (7, 64)
