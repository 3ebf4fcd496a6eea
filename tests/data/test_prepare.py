"""`prepare` from end to end: the same bytes however it is run, nothing half-written, and an audit that counts right."""

import errno
import json
import math
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
from fastbert.data import audit, shards
from fastbert.data import prepare as module
from fastbert.data.prepare import prepare
from fastbert.data.shards import Shards, fingerprint
from fastbert.data.wordpiece import train_wordpiece
from fastbert.utils.errors import DataError, InputError

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "pretrain"
WORDS = [
    f"{start}{end}" for start in "ba ke li mo nu pa re si to vu".split() for end in "ba ke li mo nu pa re si to vu".split()
]


def make_text(documents: int, seed: int = 0, sentences: tuple[int, int] = (1, 12)) -> str:
    draw = random.Random(seed)
    return "\n\n".join(
        "\n".join(" ".join(draw.choices(WORDS, k=draw.randint(2, 20))) + "." for _ in range(draw.randint(*sentences)))
        for _ in range(documents)
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(make_text(150))
    return str(file)


@pytest.fixture(scope="module")
def tokenizer(text, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer") / "words"
    train_wordpiece([text], folder, vocab_size=150)
    return str(folder)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    monkeypatch.setattr(module, "BATCH_BYTES", 5000)


SMALL = {"seq_len": 32, "shard_samples": 100, "duplicates": 2, "workers": 1}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def expected(text, tokenizer, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected") / "out"
    prepare([text], tokenizer, out, **SMALL)
    return contents(out)


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
        spelled = [words.decode(side[4:-4]).replace(" .", ".").strip() for side in (a, b)]
        for side in spelled:
            assert side.removeprefix("##").removeprefix(".").strip() in whole


def test_any_number_of_processes_gives_the_same_bytes(text, tokenizer, tmp_path, expected):
    prepare([text], tokenizer, tmp_path / "out", **{**SMALL, "workers": 3})
    assert contents(tmp_path / "out") == expected


class Stop(Exception):
    pass


def stop_after(calls: int, error: type[BaseException]):
    left = calls

    def report(*_):
        nonlocal left
        left -= 1
        if left < 0:
            raise error

    return report


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
    assert len(stages) < 40 - calls + 3  # what was finished is not made again


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


def test_a_torn_write_is_written_over(text, tokenizer, tmp_path, expected):
    """As a power cut leaves it: bytes behind what the record says, and partial files of a process that is gone."""
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


@pytest.mark.parametrize("finished", [False, True])
def test_other_options_are_refused_unless_told_to_begin_again(text, tokenizer, tmp_path, expected, finished):
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


def test_a_worker_that_dies_is_an_error(text, tokenizer, tmp_path, expected):
    class Die:
        def __reduce__(self):
            return os._exit, (1,)

    results = module._map(Die(), ((n, n) for n in range(3)), workers=2)
    with pytest.raises(ChildProcessError, match="fewer workers"):
        list(results)


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


@pytest.mark.parametrize("missing", ["[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]"])
def test_rejects_a_vocabulary_without_a_special_token(text, tmp_path, missing):
    vocabulary = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, ".") if token != missing]
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (tmp_path / "words" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(DataError, match=rf"{missing[1:-1].lower()}_token, got none for '\{missing}' in"):
        prepare([text], tmp_path / "words", tmp_path / "out", **SMALL)
    assert not (tmp_path / "out").exists()


def test_special_tokens_spelled_in_the_text_are_words(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("ba [SEP] ke\nli [MASK] mo\n\nnu [CLS] pa\nre [PAD] si\n")
    prepare([str(tmp_path / "a.txt")], tokenizer, tmp_path / "out", seq_len=64, workers=1)
    for sample in (data := Shards(tmp_path / "out"))[0], data[1]:
        assert [sum(sample.input_ids == number) for number in (0, 2, 3, 4)] == [0, 1, 2, 0]


def test_the_audit_counts_right(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("ba ke\nli mo nu\n\nba ke\n\nre re 漢\nba ke\nsi\n")
    meta = prepare([str(tmp_path / "a.txt")], tokenizer, tmp_path / "out", seq_len=16, workers=1, duplicates=3)
    found = json.loads((tmp_path / "out" / "meta.json").read_text())["audit"]
    assert found == json.loads(json.dumps(meta.audit))
    assert (found["documents"], found["one_sentence_documents"]) == (3, 1)
    assert (found["sentences"], found["duplicate_lines"]) == (6, 2)
    words = transformers.AutoTokenizer.from_pretrained(tokenizer)
    tokens = [t for line in (tmp_path / "a.txt").read_text().split("\n") for t in words.tokenize(line)]
    assert found["tokens"] == len(tokens)
    assert found["unknown_tokens"] == tokens.count("[UNK]") == 1
    counts = [tokens.count(token) for token in set(tokens) - {"[UNK]"}]
    assert found["entropy"] == pytest.approx(-sum(c / sum(counts) * math.log(c / sum(counts)) for c in counts))
    assert found["ln_vocab_size"] == math.log(len(words))
    data = Shards(tmp_path / "out")
    assert found["samples"] == len(data)
    assert found["fill_rate"] == pytest.approx(data.lengths.mean() / 16)
    assert sum(count for _, count in found["length_histogram"]) == len(data)
    assert found["length_histogram"][-1][0] == 16
    assert found["random_rate"] == np.mean([data[index].is_random_next for index in range(len(data))])
    assert found["random_interval"][0] < found["random_rate"] < found["random_interval"][1] or found["random_rate"] == 1


def test_wilson_interval_against_published_values():
    assert audit.wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)  # Newcombe 1998, method 3
    assert audit.wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert audit.wilson_interval(29, 29) == pytest.approx((0.8830, 1.0), abs=1e-4)


def test_distinct_hashes_are_counted_in_pieces(monkeypatch):
    monkeypatch.setattr(audit, "PIECE", 100)
    values = np.random.default_rng(0).integers(0, 2**64, 950, np.uint64, endpoint=False)
    values[:5] = [0, 2**64 - 1, 0, 2**63, 2**64 - 1]
    many = np.concatenate([values, values[:300]])
    assert audit._distinct(many) == len(set(many.tolist()))
    ends = np.cumsum(np.arange(1000) % 3 + 1)
    assert audit._ones(ends) == 334
    assert audit._distinct(np.empty(0, np.uint64)) == 0


def test_warnings_are_plain_words(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("ba ke li\n\n" * 5 + "漢 漢\n\n")
    meta = prepare([str(tmp_path / "a.txt")], tokenizer, tmp_path / "out", seq_len=128, workers=1)
    said = "\n".join(audit.warnings(meta.audit))
    for part in (
        "67% of the lines stand in the text more than once (4 repetitions)",
        "6 of 6 documents have one sentence and can never give a pair where B follows A",
        "only 6 documents",
        "of the tokens are [UNK]",
        "B is random in 100% of the samples",
        "of the sequence length on average",
    ):
        assert part in said
    good = dict(meta.audit, duplicate_lines=0, one_sentence_documents=0, documents=100, unknown_tokens=0, random_rate=0.5)
    assert audit.warnings(dict(good, fill_rate=0.9)) == []


def test_the_command(text, tokenizer, tmp_path, expected):
    command = [
        "prepare", text, "--tokenizer", tokenizer, "--out", str(tmp_path / "out"), "--seq-len", "32",
        "--duplicates", "2", "--workers", "1", "--shard-samples", "100",
    ]  # fmt: skip
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
    monkeypatch.setattr(module, "_make_shards", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    done = CliRunner().invoke(
        app, ["prepare", text, "--tokenizer", tokenizer, "--out", str(tmp_path / "out"), "--workers", "1"]
    )
    assert done.exit_code == 130
    assert "interrupted; --resume continues from here" in done.output


MEASURE = """
import resource, sys
from fastbert.data import audit, prepare as module
tokenizer, small, large = sys.argv[1:4]
audit.PIECE = module.BATCH_BYTES = 1 << 15
for text in (small, large):
    module.prepare([text], tokenizer, text + ".out", workers=1, shard_samples=300)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def test_memory_does_not_grow_with_the_text(tokenizer, tmp_path):
    """Ten times the text in the same process: no more than its memory-mapped tokens and what the allocator leaves."""
    files = [tmp_path / "small.txt", tmp_path / "large.txt"]
    for file, documents in zip(files, (100, 1000)):
        file.write_text(make_text(documents, sentences=(60, 60)))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tokenizer, *map(str, files)], check=True, capture_output=True, text=True,
        env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
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
