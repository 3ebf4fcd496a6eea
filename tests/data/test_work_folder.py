"""What may be written to and resumed: a folder of the same options, and no other without --overwrite."""

import pytest

from fastbert.data.prepare import prepare
from fastbert.data.wordpiece import train_wordpiece
from fastbert.utils.errors import DataError, InputError
from tests.data.small_text import SMALL, Stop, contents, make_text, stop_after


@pytest.mark.parametrize("finished", [False, True])
def test_other_options_are_refused_without_overwrite(text, tokenizer, tmp_path, expected, finished):
    out = tmp_path / "out"
    if finished:
        prepare([text], tokenizer, out, **SMALL)
    else:
        with pytest.raises(Stop):
            prepare([text], tokenizer, out, **SMALL, report=stop_after(6, Stop))
    before = contents(out)
    with pytest.raises(
        DataError, match=r"got seed 0 then, 1 now; shard_samples|got duplicates 2 then, 1 now; seed 0 then, 1 now"
    ):
        prepare([text], tokenizer, out, **{**SMALL, "duplicates": 1}, seed=1, resume=True)
    other = tmp_path / "other.txt"
    other.write_text(make_text(20, seed=1))
    with pytest.raises(DataError, match=r"got files .*text\.txt.* then, .*other\.txt.* now"):
        prepare([str(other)], tokenizer, out, **SMALL, resume=True)
    cased = tmp_path / "cased"
    train_wordpiece([text], cased, vocab_size=150, cased=True)
    with pytest.raises(DataError, match="tokenizer_pipeline '"):
        prepare([text], cased, out, **SMALL, resume=True)
    assert contents(out) == before
    prepare([text], tokenizer, out, **SMALL, seed=1, overwrite=True)
    assert contents(out) != expected
    prepare([text], tokenizer, out, **SMALL, overwrite=True)
    assert contents(out) == expected


def test_a_finished_folder_is_left_alone(text, tokenizer, tmp_path):
    prepare([text], tokenizer, tmp_path / "out", **SMALL)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")}
    prepare([text], tokenizer, tmp_path / "out", **SMALL, resume=True)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")} == before


def test_a_folder_with_other_files_is_left_alone(text, tokenizer, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"one of `fastbert prepare`, got .* with other files: mine"):
            prepare([text], tokenizer, tmp_path / "out", **SMALL, overwrite=overwrite)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]


def test_one_call_at_a_time(text, tokenizer, tmp_path):
    def report(*_):
        with pytest.raises(InputError, match=r"expected no other run that writes to .*, got one of this process"):
            prepare([text], tokenizer, tmp_path / "out", **SMALL)
        raise Stop

    with pytest.raises(Stop):
        prepare([text], tokenizer, tmp_path / "out", **SMALL, report=report)
