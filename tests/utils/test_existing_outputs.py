"""The rule for outputs that exist: what each error says."""

from pathlib import Path

import pytest

from fastbert.utils.errors import InputError
from fastbert.utils.existing_outputs import (
    check_flags,
    exists_error,
    first_difference,
    foreign_folder_error,
    other_options_error,
    visible_names,
)


def test_both_flags_are_refused():
    check_flags(True, False)
    check_flags(False, True)
    with pytest.raises(InputError, match="expected --resume or --overwrite, got both"):
        check_flags(True, True)


def test_the_errors_name_the_output_and_what_to_do():
    assert str(exists_error(Path("out"), "is unfinished")) == (
        "expected a new output, --resume, which continues it, or --overwrite, which starts over, got out, which is unfinished"
    )
    assert "--resume" not in str(exists_error(Path("out"), "exists", resumable=False))
    assert "`fastbert prepare`, got out with other files: notes.txt" in str(
        foreign_folder_error(Path("out"), "prepare", "notes.txt")
    )
    assert str(other_options_error(Path("out"), "seed", 0, 1)).startswith("expected seed 0, with which out was started, got 1;")


def test_the_first_difference_is_named_by_its_path():
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1}}) is None
    assert first_difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ("a c", 2, 3)
    assert first_difference({"a": 1}, {}) == ("a", 1, None)
    assert first_difference({}, {"a": 1}) == ("a", None, 1)


def test_names_with_a_dot_are_not_visible(tmp_path):
    assert visible_names(tmp_path / "none") == []
    for name in (".lock", "b", "a"):
        (tmp_path / name).touch()
    assert visible_names(tmp_path) == ["a", "b"]


def test_other_content_is_named_without_digests(tmp_path):
    for key in ("train", "sha256 of its ends"):
        changed = first_difference({"input": {key: "0" * 64}}, {"input": {key: "f" * 64}})
        message = str(other_options_error(tmp_path / "out", *changed))
        assert message.startswith(
            f"expected the input{' train' if key == 'train' else ''} with which {tmp_path / 'out'} was started, got"
        )
        assert "0000" not in message
        assert "sha256" not in message
