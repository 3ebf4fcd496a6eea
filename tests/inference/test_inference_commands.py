"""The commands as a user runs them: from arguments, files and the standard input, interrupted and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import fastbert
from fastbert.cli import inference_run
from fastbert.inference import engine, outputs
from fastbert.inference.embedding import Embedding, embed
from fastbert.inference.masked_words import fill_mask
from fastbert.inference.next_sentence import next_sentence

runner = CliRunner()
DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
FP32 = {"dtype": torch.float32}
PRECISE = ["--precision", "float32"]


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def call(app, checkpoints):
    def run(name: str, class_name: str, *arguments, status: int = 0, stdin: str | None = None):
        done = runner.invoke(app, [name, "--model", checkpoints[class_name], *PRECISE, *map(str, arguments)], input=stdin)
        assert done.exit_code == status, done.output + repr(done.exception)
        return done

    return run


@pytest.fixture
def file(tmp_path, sentences) -> Path:
    found = tmp_path / "texts.txt"
    found.write_text("\n".join([*sentences, "", "dog " * 100]) + "\n")
    return found


def test_vectors_of_a_file(call, checkpoints, file, tmp_path, sentences):
    done = call("embed", "BertModel", "--file", file, "--out", tmp_path / "a.npy")
    assert "mean pooling, normalised, 32 dimensions, at most 64 tokens" in done.stderr
    assert f"warning: empty texts, run as special tokens alone: 1 (line 61 of {file})" in done.stderr
    assert f"warning: texts cut at 64 tokens: 1 (line 62 of {file})" in done.stderr
    assert f"{tmp_path / 'a.npy'}: 62 rows" in done.stderr
    found = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:60], embed(sentences, checkpoints["BertModel"], **FP32), atol=1e-5)
    assert np.load(tmp_path / "a.npy", mmap_mode="r").shape == (62, 32)

    call("embed", "BertModel", "--file", file, "--out", tmp_path / "b.npy", "--dtype", "float16")
    assert np.load(tmp_path / "b.npy").dtype == np.float16
    call("embed", "BertModel", "--file", file, "--out", tmp_path / "c.jsonl", "--pooling", "cls", "--no-normalize")
    rows = lines((tmp_path / "c.jsonl").read_text())
    assert [row["text"] for row in rows[:60]] == sentences
    expected = embed(sentences, checkpoints["BertModel"], pooling="cls", normalize=False, **FP32)
    np.testing.assert_allclose([row["embedding"] for row in rows[:60]], expected, atol=1e-5)
    names = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("."))
    assert names == ["a.npy", "b.npy", "c.jsonl", "texts.txt"]


def test_jsonl_numbers_are_the_vectors_own(call, file, tmp_path):
    call("embed", "BertModel", "--file", file, "--out", tmp_path / "a.npy")
    call("embed", "BertModel", "--file", file, "--out", tmp_path / "a.jsonl")
    rows = lines((tmp_path / "a.jsonl").read_text())
    np.testing.assert_array_equal(np.float32([row["embedding"] for row in rows]), np.load(tmp_path / "a.npy"))


def test_arguments_and_the_standard_input(call, checkpoints):
    texts = ["the cat [MASK] down", "a [MASK]"]
    expected = fill_mask(texts, checkpoints["BertForPreTraining"], top=3, **FP32)
    tokens = [[fill["token"] for fill in masks[0]] for masks in expected]
    for done in (
        call("fill-mask", "BertForPreTraining", "--top", 3, *texts),
        call("fill-mask", "BertForPreTraining", "--top", 3, stdin="\n".join(texts)),
        call("fill-mask", "BertForPreTraining", "--top", 3, "-", stdin="\n".join(texts)),
    ):
        rows = lines(done.stdout)
        assert [row["text"] for row in rows] == texts
        assert [[fill["token"] for fill in row["masks"][0]] for row in rows] == tokens


def test_pairs(call, checkpoints, tmp_path):
    pairs = [("the cat", "sat down"), ("a dog", "in the park")]
    expected = next_sentence(pairs, checkpoints["BertForPreTraining"], **FP32)
    (tmp_path / "a.tsv").write_text("one\ttwo\tthree\n" + "".join(f"{a}\tx\t{b}\n" for a, b in pairs))
    for done in (
        call("next", "BertForPreTraining", *pairs[0], *pairs[1]),
        call("next", "BertForPreTraining", "--file", tmp_path / "a.tsv", "--field", "one", "--field", "three"),
        call("next", "BertForPreTraining", stdin="".join(json.dumps({"first": a, "second": b}) + "\n" for a, b in pairs)),
    ):
        rows = lines(done.stdout)
        assert [(row["first"], row["second"]) for row in rows] == pairs
        assert [row["score"] for row in rows] == pytest.approx(expected, abs=1e-5)


def test_labels_tags_and_answers(call, tmp_path):
    (row,) = lines(call("classify", "BertForSequenceClassification", "the cat", "--top", 0).stdout)
    assert sum(label["score"] for label in row["labels"]) == pytest.approx(1)
    (row,) = lines(call("classify", "BertForSequenceClassification", "--pairs", "the cat", "a dog").stdout)
    assert (row["first"], row["second"], len(row["labels"])) == ("the cat", "a dog", 1)
    done = call("tag", "BertForTokenClassification", "the cat sat", "a dog")
    assert [len(row["tags"]) for row in lines(done.stdout)] == [3, 2]
    assert "5 words tagged" in done.stderr
    questions = tmp_path / "a.jsonl"
    questions.write_text(json.dumps({"id": 1, "question": "who sat?", "context": "the cat sat. " * 60}) + "\n")
    (row,) = lines(call("answer", "BertForQuestionAnswering", "--file", questions, "--top", 2).stdout)
    assert [row["context"][one["start"] : one["end"]] for one in row["answers"]] == [one["answer"] for one in row["answers"]]


@pytest.mark.parametrize(
    ("name", "class_name", "arguments", "shown"),
    [
        ("embed", "BertModel", ["the cat", "a dog"], ["the cat", "cosine 2", "1.000"]),
        ("fill-mask", "BertForPreTraining", ["the [MASK] sat [b]"], ["probability", "[b]"]),
        ("classify", "BertForSequenceClassification", ["the cat"], ["score", "the cat"]),
        ("next", "BertForPreTraining", ["the cat", "a dog"], ["B follows A", "a dog"]),
        ("tag", "BertForTokenClassification", ["the cat sat in the park"], ["label", "words"]),
        ("answer", "BertForQuestionAnswering", ["who?", "the cat sat"], ["characters", "who?"]),
    ],
)
def test_arguments_make_a_table_on_a_terminal(call, monkeypatch, name, class_name, arguments, shown):
    monkeypatch.setattr(inference_run, "is_terminal", lambda: True)
    output = call(name, class_name, *arguments).stdout
    for text in ["┃", *shown]:
        assert text in output


def interrupted(monkeypatch, after: int):
    """An embedding that is interrupted after so many forwards, and windows of four batches."""
    monkeypatch.setattr(engine, "WINDOW_BATCHES", 4)
    monkeypatch.setattr(engine, "CHUNK_ROWS", 4)
    forward, calls = Embedding.forward, []

    def stopping(self, batch):
        calls.append(batch)
        if len(calls) > after:
            raise KeyboardInterrupt
        return forward(self, batch)

    monkeypatch.setattr(Embedding, "forward", stopping)
    return calls


@pytest.mark.parametrize("name", ["a.npy", "a.jsonl"])
def test_an_interrupted_run_goes_on_where_it_was(call, file, tmp_path, monkeypatch, name):
    options = ["--file", file, "--batch-tokens", 64]
    with monkeypatch.context() as patched:
        calls = interrupted(patched, 10**6)
        call("embed", "BertModel", *options, "--out", tmp_path / f"whole-{name}")
        all_calls = len(calls)
    out = tmp_path / name
    with monkeypatch.context() as patched:
        interrupted(patched, 11)
        done = call("embed", "BertModel", *options, "--out", out, status=130)
    state = json.loads((tmp_path / f"{name}.partial.json").read_text())
    assert 0 < state["rows"] < 62
    assert f"--resume continues after row {state['rows']}" in done.stderr
    assert not out.exists()
    with (tmp_path / f"{name}.partial").open("ab") as partial:
        partial.write(b"rows that no state counts" * 4096)

    refused = call("embed", "BertModel", *options, "--out", out, status=2)
    assert f"--resume, which continues it, or --overwrite, which starts over, got {out}, which is unfinished" in refused.stderr
    with monkeypatch.context() as patched:
        calls = interrupted(patched, 10**6)
        done = call("embed", "BertModel", *options, "--out", out, "--resume")
    assert f"continues after row {state['rows']}" in done.stderr
    assert len(calls) < all_calls - 5
    if name == "a.npy":
        np.testing.assert_allclose(np.load(out), np.load(tmp_path / f"whole-{name}"), atol=1e-6)
    else:
        whole = lines((tmp_path / f"whole-{name}").read_text())
        assert [row["text"] for row in lines(out.read_text())] == [row["text"] for row in whole]
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize("change", ["input", "name", "pooling", "dtype", "model"])
def test_another_run_does_not_go_on_with_it(call, checkpoints, file, tmp_path, monkeypatch, change):
    out = tmp_path / "a.npy"
    options = {"--file": str(file), "--out": str(out), "--batch-tokens": "64", "--pooling": "mean", "--dtype": "float32"}
    with monkeypatch.context() as patched:
        interrupted(patched, 11)
        call("embed", "BertModel", *(word for option in options.items() for word in option), status=130)
    before = (tmp_path / "a.npy.partial").read_bytes()
    class_name, named = "BertModel", f"options {change}"
    if change == "input":
        file.write_text(file.read_text().replace("cat", "dog"))
        named = "the input"
    elif change == "name":
        (tmp_path / "b.txt").write_bytes(file.read_bytes())
        options["--file"], named = str(tmp_path / "b.txt"), "input name"
    elif change == "model":
        class_name, named = "BertForQuestionAnswering", "model name"
    else:
        options[f"--{change}"] = {"pooling": "cls", "dtype": "float16"}[change]
        named = {"pooling": "options modules 'mean pooling, normalised'", "dtype": "options dtype 'float32'"}[change]
    arguments = [word for option in options.items() for word in option]
    done = call("embed", class_name, *arguments, "--resume", status=2)
    assert f"fastbert: expected {named}" in done.stderr
    assert f" with which {out} was started, got " in done.stderr
    assert (tmp_path / "a.npy.partial").read_bytes() == before
    assert not out.exists()


def test_resume_without_anything_to_resume_begins(call, file, tmp_path):
    call("embed", "BertModel", "--file", file, "--out", tmp_path / "a.npy", "--resume")
    assert np.load(tmp_path / "a.npy").shape == (62, 32)


def test_a_killed_run_is_resumed(call, checkpoints, tmp_path, sentences):
    """SIGKILL, at whatever point: the rows that the state counts are kept, the others computed."""
    file, out = tmp_path / "texts.txt", tmp_path / "a.npy"
    file.write_text("\n".join(sentences * 20))
    code = (
        "import typer\nfrom fastbert.cli import inference as cli\nfrom fastbert.inference import engine, outputs\n"
        "outputs.SAVE_SECONDS = 0.0; engine.WINDOW_BATCHES = 4; engine.CHUNK_ROWS = 8\n"
        "typer.run(cli.embed)"
    )
    options = ["--file", str(file), "--out", str(out), "--batch-tokens", "128"]
    command_line = [sys.executable, "-c", code, "--model", checkpoints["BertModel"], *options, *PRECISE]
    state = tmp_path / "a.npy.partial.json"
    with subprocess.Popen(command_line, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (state.is_file() and json.loads(state.read_text())["rows"] > 200):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert json.loads(state.read_text())["rows"] < 1200
    done = call("embed", "BertModel", *options, "--resume")
    assert "continues after row" in done.stderr
    expected = embed(sentences * 20, checkpoints["BertModel"], **FP32)
    np.testing.assert_allclose(np.load(out), expected, atol=1e-5)


def test_all_rows_that_are_done_are_saved_while_the_next_are_computed(call, file, tmp_path, monkeypatch):
    """Rows come in bursts, a window at a time; a kill between bursts loses none of the last one."""
    clock = [0.0]  # ten seconds for each forward, none for a burst
    monkeypatch.setattr(outputs, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    calls = interrupted(monkeypatch, 10**6)
    states, written = [], []
    write, state = outputs.Output.write, tmp_path / "a.npy.partial.json"
    monkeypatch.setattr(outputs.Output, "write", lambda self, row: (written.append(row), write(self, row)))
    forward = Embedding.forward

    def looking(self, batch):
        clock[0] += 10.0
        if calls:
            states.append((json.loads(state.read_text())["rows"], len(written)))
        return forward(self, batch)

    monkeypatch.setattr(Embedding, "forward", looking)
    call("embed", "BertModel", "--file", file, "--batch-tokens", 64, "--out", tmp_path / "a.npy")
    kept = [saved for saved, done in states if saved == done]
    assert len(set(kept)) > 4  # one for each burst, whole


def test_a_bad_row_is_met_before_anything_is_written(call, tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("the [MASK]\n" * 50 + "the cat\n")
    done = call("fill-mask", "BertForPreTraining", "--file", file, "--out", tmp_path / "a.jsonl", status=2)
    assert f"expected [MASK] in the text, got none in line 51 of {file}" in done.stderr
    (tmp_path / "b.csv").write_text("text,label\nthe cat,1\nthe dog\n")
    done = call("embed", "BertModel", "--file", tmp_path / "b.csv", "--out", tmp_path / "b.npy", status=2)
    assert f"expected 2 fields (text, label), got 1 in line 3 of {tmp_path / 'b.csv'}" in done.stderr
    done = call("embed", "BertModel", "--file", tmp_path / "b.csv", status=2)
    assert done.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.csv"]


def test_an_error_of_the_run_leaves_nothing(call, file, tmp_path):
    done = call("embed", "BertModel", "--file", file, "--out", tmp_path / "a.npy", "--long", "error", status=2)
    assert f"expected texts of at most 64 tokens, got 102 in line 62 of {file}" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


def test_output_of_the_standard_input(call, tmp_path, sentences):
    call("embed", "BertModel", "--out", tmp_path / "a.npy", stdin="\n".join(sentences))
    assert np.load(tmp_path / "a.npy").shape == (60, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["the cat", "--file", "FILE"], "expected arguments or --file, got both: 'the cat' and"),
        (["the cat", "--field", "text"], "expected --file or the standard input beside --field"),
        (["the cat", "--resume"], "expected --file and --out beside --resume"),
        (["--file", "FILE", "--resume"], "expected --file and --out beside --resume"),
        (["--file", "absent.txt"], "absent.txt"),
        (["--file", "FILE", "--out", "absent/a.npy"], "absent/a.npy"),
    ],
)
def test_what_does_not_go_together_is_one_line(call, file, arguments, message):
    done = call("embed", "BertModel", *(str(file) if word == "FILE" else word for word in arguments), status=2)
    assert message in done.stderr
    assert done.stderr.splitlines()[-1].startswith("fastbert: ")
    assert done.stdout == ""


def test_odd_arguments_for_pairs(call):
    done = call("next", "BertForPreTraining", "a", "b", "c", status=2)
    assert "expected first and second as arguments" in done.stderr


def test_a_reader_that_has_seen_enough_ends_it(checkpoints, file):
    """As `| head -1`: no error, no traceback."""
    code = "import typer; from fastbert.cli import inference as cli; typer.run(cli.embed)"
    arguments = ["--model", checkpoints["BertModel"], "--file", str(file)]
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        message = process.stderr.read().decode()
    assert process.returncode == 0, message
    assert "Traceback" not in message
    assert "Broken" not in message


def test_memory_does_not_grow_with_the_input(checkpoints, tmp_path):
    """A run over eight times the rows, later in the same process, takes hardly more memory at its peak."""
    code = (
        "import resource, sys, typer\nfrom fastbert.cli import inference as cli\nfrom fastbert.inference import engine\n"
        "engine.WINDOW_BATCHES = 1\n"
        "app = typer.Typer(); app.command()(cli.embed)\n"
        "for rows in sys.argv[3:]:\n"
        "    file = f'{sys.argv[2]}/{rows}'\n"
        "    app(['--model', sys.argv[1], '--file', file + '.txt', '--out', file + '.npy'], standalone_mode=False)\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    counts = (1000, 8000)
    for rows in counts:
        with (tmp_path / f"{rows}.txt").open("w") as handle:
            handle.writelines("the cat sat on the mat " * 2 + "x" * 4000 + "\n" for _ in range(rows))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command_line = [sys.executable, "-c", code, checkpoints["BertModel"], str(tmp_path), *map(str, counts)]
    done = subprocess.run(command_line, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    small, large = (int(line) * 1024 for line in done.stdout.split() if line.isdigit())
    grown = 7000 * (4048 + 32 * 4)  # of the texts and the vectors
    assert large - small < grown / 2


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not beside the repository")
def test_real_files(call, tmp_path):
    """Line breaks in quotes, quotes as text: as many rows as the file has."""
    call("embed", "BertModel", "--file", DATA / "classify" / "banking77_test.csv", "--out", tmp_path / "a.npy")
    assert np.load(tmp_path / "a.npy", mmap_mode="r").shape == (3080, 32)
    done = call("fill-mask", "BertForPreTraining", "--file", DATA / "pair" / "snli_test.tsv", status=2)
    assert "got premise, hypothesis, label: name them with --field" in done.stderr


def test_versions_of_the_state_are_distinguished(call, file, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        interrupted(patched, 11)
        call("embed", "BertModel", "--file", file, "--batch-tokens", 64, "--out", tmp_path / "a.npy", status=130)
    state = tmp_path / "a.npy.partial.json"
    content = json.loads(state.read_text())
    assert content["identity"]["fastbert"] == fastbert.__version__
    state.write_text("{")
    done = call("embed", "BertModel", "--file", file, "--out", tmp_path / "a.npy", "--resume", status=2)
    assert "expected the state of" in done.stderr
    state.write_text(json.dumps(content | {"bytes": 10**9}))
    done = call("embed", "BertModel", "--file", file, "--out", tmp_path / "a.npy", "--resume", status=2)
    assert "expected at least 1000000000 bytes" in done.stderr


def test_the_header_leaves_room_for_every_number_of_rows(tmp_path):
    header = outputs.npy_header(384, np.dtype("float16"))
    assert len({len(header(rows)) for rows in (0, 1, 12345, 10**12)}) == 1
    (tmp_path / "a.npy").write_bytes(header(2) + np.arange(768, dtype="<f2").tobytes())
    assert np.load(tmp_path / "a.npy", allow_pickle=False)[1, 0] == 384
