"""`prepare` from end to end: the same bytes however it is run, and nothing half-written."""

import errno
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers
from typer.testing import CliRunner

from fastbert.cli.app import app
from fastbert.data import prepare as module
from fastbert.data import shards
from fastbert.data.prepare import prepare
from fastbert.data.shards import Shards, fingerprint
from fastbert.data.wordpiece import train_wordpiece
from fastbert.utils.errors import DataError
from tests.data.small_text import SMALL, Stop, contents, make_text, stop_after

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "pretrain"


def test_samples_are_the_text(text, tokenizer, tmp_path):
    meta = prepare([text], tokenizer, tmp_path / "out", **SMALL)
    data = Shards(tmp_path / "out")
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    assert not (tmp_path / "out" / ".work").exists()
    assert data.meta == meta
    assert meta.fingerprint == fingerprint(words)
    assert meta.vocab_size == len(words)
    assert len(meta.shards) >= 4
    assert all(50 < count < 200 for count in meta.shards)
    assert meta.num_tokens == data.lengths.sum()
    assert data.lengths.max() <= 32
    whole = Path(text).read_text().replace("\n", " ")
    for index in range(0, len(data), 7):
        sample = data[index]
        a, b = sample.input_ids[1 : sample.first_length - 1], sample.input_ids[sample.first_length : -1]
        assert list(sample.input_ids[[0, sample.first_length - 1, -1]]) == [2, 3, 3]
        assert not {0, 1, 2, 3, 4} & {*a, *b}
        for segment in (a, b):
            spelled = words.decode(segment[4:-4]).replace(" .", ".").strip()
            assert spelled.removeprefix("##").removeprefix(".").strip() in whole


def test_any_number_of_processes_gives_the_same_bytes(text, tokenizer, tmp_path, expected):
    prepare([text], tokenizer, tmp_path / "out", **{**SMALL, "workers": 3})
    assert contents(tmp_path / "out") == expected


@pytest.mark.parametrize("calls", sorted(random.Random(7).sample(range(30), 6)))
def test_an_interruption_changes_nothing(text, tokenizer, tmp_path, expected, calls):
    with pytest.raises(KeyboardInterrupt):
        prepare([text], tokenizer, tmp_path / "out", **SMALL, report=stop_after(calls, KeyboardInterrupt))
    assert not (tmp_path / "out" / "meta.json").exists()
    with pytest.raises(DataError, match="finished"):
        Shards(tmp_path / "out")
    stages = []
    prepare(
        [text], tokenizer, tmp_path / "out", **SMALL, resume=True, report=lambda stage, done, *_: stages.append((stage, done))
    )
    assert contents(tmp_path / "out") == expected
    assert len(stages) < 40 - calls + 3  # what was finished is not computed again


def test_many_interruptions_with_other_numbers_of_processes(text, tokenizer, tmp_path, expected):
    for calls, workers in ((2, 2), (5, 1), (9, 3)):
        with pytest.raises(KeyboardInterrupt):
            prepare(
                [text],
                tokenizer,
                tmp_path / "out",
                **{**SMALL, "workers": workers},
                resume=True,
                report=stop_after(calls, KeyboardInterrupt),
            )
    prepare([text], tokenizer, tmp_path / "out", **SMALL, resume=True)
    assert contents(tmp_path / "out") == expected


def test_a_torn_write_is_overwritten(text, tokenizer, tmp_path, expected):
    """As after a power cut: bytes beyond what the record says, and partial files of a dead process."""
    with pytest.raises(Stop):
        prepare([text], tokenizer, tmp_path / "out", **SMALL, report=stop_after(4, Stop))
    with (tmp_path / "out" / ".work" / "tokens.bin").open("ab") as file:
        file.write(b"torn")
    (tmp_path / "out" / ".shard-00000.tokens.npy.1").write_bytes(b"half")
    prepare([text], tokenizer, tmp_path / "out", **SMALL, resume=True)
    assert contents(tmp_path / "out") == expected


def test_lost_bytes_are_an_error(text, tokenizer, tmp_path):
    with pytest.raises(Stop):
        prepare([text], tokenizer, tmp_path / "out", **SMALL, report=stop_after(4, Stop))
    (tmp_path / "out" / ".work" / "tokens.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"bytes in .*tokens\.bin, got 0"):
        prepare([text], tokenizer, tmp_path / "out", **SMALL, resume=True)


@pytest.mark.parametrize("fails_at", [0, 3, 6])
def test_a_full_disk_leaves_no_half_written_file(text, tokenizer, tmp_path, monkeypatch, expected, fails_at):
    save, calls = np.save, 0

    def full(file, array, **kwargs):
        nonlocal calls
        calls += 1
        if calls > fails_at:
            file.write(b"half an array")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(file, array, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(shards.np, "save", full)
        with pytest.raises(OSError, match="No space left"):
            prepare([text], tokenizer, tmp_path / "out", **SMALL)
    left = [file for file in (tmp_path / "out").iterdir() if "shard" in file.name]
    assert len(left) == fails_at
    for file in left:
        assert file.read_bytes() == expected[file.name]
    assert not (tmp_path / "out" / "meta.json").exists()
    prepare([text], tokenizer, tmp_path / "out", **SMALL, resume=True)
    assert contents(tmp_path / "out") == expected


def test_a_full_disk_while_tokens_are_spooled(text, tokenizer, tmp_path, monkeypatch, expected):
    from fastbert.data.spool import Spool

    write, calls = Spool._write, 0

    def full(self, name, array):
        nonlocal calls
        calls += 1
        if calls == 11:
            write(self, name, array[: len(array) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, name, array)

    with monkeypatch.context() as patch:
        patch.setattr(Spool, "_write", full)
        with pytest.raises(OSError, match="No space left"):
            prepare([text], tokenizer, tmp_path / "out", **SMALL)
    prepare([text], tokenizer, tmp_path / "out", **SMALL, resume=True)
    assert contents(tmp_path / "out") == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"\n\n", "nothing but blanks"),
        (b"ba be bi\nbo bu\n", r"at least two documents.*got 1 in .*a\.txt"),
        (b"ba\n\nbo\xff\n", r"a\.txt, got byte 0xff in line 3 \(byte 6 of the file\)"),
        (b"\x01\n\nba ke\n", "at least two documents.*got 1"),  # control characters give no token
    ],
)
def test_rejects_text_without_pairs(tokenizer, tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare([str(tmp_path / "a.txt")], tokenizer, tmp_path / "out", **SMALL)
    assert not (tmp_path / "out" / "meta.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 4}, "at least 5, got 4"),
        ({"seq_len": 513}, "at most 512 .*got 513"),
        ({"short_seq_prob": 2}, "from 0 to 1, got 2"),
        ({"duplicates": 0}, "duplicates 0"),
        ({"workers": 0}, "at least one process, got 0"),
        ({"shard_samples": 0}, "shards of at least one"),
    ],
)
def test_rejects_bad_options_before_anything_is_written(text, tokenizer, tmp_path, changes, message):
    with pytest.raises(DataError, match=message):
        prepare([text], tokenizer, tmp_path / "out", **{**SMALL, **changes})
    with pytest.raises(FileNotFoundError):
        prepare([text, str(tmp_path / "absent.txt")], tokenizer, tmp_path / "out", **SMALL)
    with pytest.raises(DataError, match="expected a folder or hub name of a BERT tokenizer"):
        prepare([text], tmp_path / "absent", tmp_path / "out", **SMALL)
    assert not (tmp_path / "out").exists()


def test_special_tokens_spelled_in_the_text_are_words(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("ba [SEP] ke\nli [MASK] mo\n\nnu [CLS] pa\nre [PAD] si\n")
    prepare([str(tmp_path / "a.txt")], tokenizer, tmp_path / "out", seq_len=64, workers=1)
    for sample in (data := Shards(tmp_path / "out"))[0], data[1]:
        assert [sum(sample.input_ids == number) for number in (0, 2, 3, 4)] == [0, 1, 2, 0]


def test_the_command(text, tokenizer, tmp_path, expected):
    command = [
        "prepare",
        text,
        "--tokenizer",
        tokenizer,
        "--out",
        str(tmp_path / "out"),
        "--seq-len",
        "32",
        "--duplicates",
        "2",
        "--workers",
        "1",
        "--shard-samples",
        "100",
    ]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "B is random" in done.output
    assert contents(tmp_path / "out") == expected
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert "expected a new output, --resume, which continues it, or --overwrite, which starts over, got" in done.output
    done = CliRunner().invoke(app, [*command, "--resume"])
    assert done.exit_code == 0
    assert "is finished, with these options; nothing is left to compute" in done.output
    done = CliRunner().invoke(app, [*command, "--seed", "1", "--resume"])
    assert done.exit_code == 2
    assert "got seed 0 then, 1 now" in done.output


def test_the_command_says_how_to_go_on(text, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "make_shards", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    done = CliRunner().invoke(
        app, ["prepare", text, "--tokenizer", tokenizer, "--out", str(tmp_path / "out"), "--workers", "1"]
    )
    assert done.exit_code == 130
    assert "interrupted; --resume continues from here" in done.output


# Without transformers, whose import takes longer than all the rest.
MEASURE = """
import resource, sys, types
import tokenizers
from fastbert.data import audit, prepare as module, tokenize_documents
from fastbert.data.tokenizer import Tokenizer
tokenizer, small, large = sys.argv[1:4]
audit.PIECE = tokenize_documents.BATCH_CHARACTERS = 1 << 15
backend = tokenizers.Tokenizer.from_file(tokenizer + "/tokenizer.json")
backend.no_truncation()
ids = {role: backend.token_to_id(f"[{role.upper()}]") for role in ("cls", "sep", "mask", "pad", "unk")}
loaded = types.SimpleNamespace(save_pretrained=lambda folder: None)
opened = Tokenizer(loaded, backend.get_vocab_size(), ids, list(ids.values()), "", "", backend.to_str())
module.open_tokenizer = lambda name, seq_len: opened
for text in (small, large):
    module.prepare([text], tokenizer, text + ".out", workers=1, shard_samples=300)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
assert "transformers" not in sys.modules
"""


def test_memory_does_not_grow_with_the_text(tokenizer, tmp_path):
    """Ten times the text in the same process: no more than its memory-mapped tokens and what the allocator leaves."""
    files = [tmp_path / "small.txt", tmp_path / "large.txt"]
    for file, documents in zip(files, (100, 1000)):
        file.write_text(make_text(documents, sentences=(60, 60)))
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", MEASURE, tokenizer, *map(str, files)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    small, large = map(float, done.stdout.split())
    assert files[1].stat().st_size > 9 * files[0].stat().st_size
    assert large - small < 6, f"{small:.0f} MiB for the small text, {large:.0f} MiB for ten times as much"


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared text is not beside the repository")
def test_real_english_and_korean(tmp_path):
    names = [str(DATA / name) for name in ("ko_fairy_tales.txt", "ko_wikinews.txt", "en_books_heldout.txt")]
    train_wordpiece(names, tmp_path / "words", vocab_size=8000)
    meta = prepare(names, tmp_path / "words", tmp_path / "out", workers=2, shard_samples=2000)
    found = meta.audit
    lines = [line for name in names for line in Path(name).read_text(encoding="utf-8").split("\n") if line]
    assert found["sentences"] == len(lines)
    assert found["duplicate_lines"] == len(lines) - len(set(lines))
    assert found["unknown_tokens"] / found["tokens"] < 0.005
    assert found["fill_rate"] > 0.8
    low, high = found["random_interval"]
    assert 0.45 < low < found["random_rate"] < high < 0.6
    assert 5 < found["entropy"] < found["ln_vocab_size"]
    data = Shards(tmp_path / "out")
    assert len(data) == found["samples"]
    assert data.lengths.max() == 128
