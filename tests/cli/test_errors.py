"""Every command with everything that can be wrong about its files: one line that names the culprit, status 2, nothing written.

The commands are those of the app itself, and each of their arguments that takes a path or a checkpoint must have its place in
`SLOTS`: a new command, or a new argument, fails here until it is listed there.
"""

import importlib
import io
import json
import os
import pkgutil
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
import transformers
import typer
from typer.testing import CliRunner

import fastbert
from fastbert.cli.app import app

COMMANDS = {one.name or one.callback.__name__.replace("_", "-"): one.callback for one in app.registered_commands}
WORDS = "the a cat dog sat ran on in mat park who where big small".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TINY = dict(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=32,
)
NOBODY = 65534


@dataclass(frozen=True)
class Slot:
    """kind: checkpoint, file, folder (of prepared data), tokenizer, or an output: out-file, out-folder. name: as it is in the
    command's words, a placeholder of `words`. usable: faults that this argument may well take, with the reason."""

    kind: str
    name: str
    usable: tuple[str, ...] = ()


# The words of a call that works, with {places}, and the arguments by the names of the command's parameters.
CALLS: dict[str, str] = {
    "demo": "{checkpoint} --text {text} --rounds 1",
    "explain": "{checkpoint}",
    "verify": "{checkpoint} --text {text} --json {out} --no-kernels --no-heads --max-texts 2",
    "tune": "{checkpoint} --out {out}",
    "tokenizer": "{text} --vocab-size 60 --min-frequency 1 --out {out}",
    "prepare": "{text} --tokenizer {tokenizer} --out {out} --seq-len 16 --workers 1",
    "pretrain": "--data {data} --held-out {data} --steps 1 --config {config} --out {out} --batch-tokens 64 "
    "--micro-batch-tokens 64 --workers 0 --warmup-steps 0 --peak-tflops 1",
    "masks": "{data}",
    "replay": "{box}",
    "finetune": "classify --model {checkpoint} --train {table} --eval {table} --out {out} --epochs 1 --batch-size 4",
    "embed": "--model {checkpoint} --file {text} --out {out}",
    "fill-mask": "--model {masked} --file {masks} --out {out}",
    "next": "--model {masked} --file {pairs} --out {out}",
    "classify": "--model {classifier} --file {text} --out {out}",
    "tag": "--model {tagger} --file {text} --out {out}",
    "answer": "--model {answerer} --file {questions} --out {out}",
    "rank": "who --model {ranker} --file {text} --out {out}",
    "evaluate": "classify --model {classifier} --file {labelled} --json {out}",
    "export": "{checkpoint} --to torch-export --out {out}.pt2 --no-check",
}
SLOTS: dict[str, dict[str, Slot]] = {
    "demo": {"checkpoint": Slot("checkpoint", "checkpoint"), "text": Slot("file", "text")},
    "explain": {"checkpoint": Slot("checkpoint", "checkpoint")},
    "verify": {
        "checkpoint": Slot("checkpoint", "checkpoint"),
        "text": Slot("file", "text"),
        "json_file": Slot("out-file", "out"),
        "calibrate": Slot("elsewhere", "read as --text is, with --dtype fp8 alone"),
    },
    "tune": {
        "checkpoint": Slot("checkpoint", "checkpoint"),
        "out": Slot("elsewhere", "written on a GPU alone: test_tune"),
    },
    "tokenizer": {"files": Slot("file", "text"), "out": Slot("out-folder", "out")},
    "prepare": {"files": Slot("file", "text"), "tokenizer": Slot("tokenizer", "tokenizer"), "out": Slot("out-folder", "out")},
    "pretrain": {
        "data": Slot("folder", "data"),
        "held_out": Slot("elsewhere", "the same folder here"),
        "config": Slot("file", "config"),
        "out": Slot("out-folder", "out"),
    },
    "masks": {"data": Slot("folder", "data")},
    "replay": {"file": Slot("file", "box")},
    "finetune": {
        "model": Slot("checkpoint", "checkpoint"),
        "train": Slot("file", "table"),
        "evaluation": Slot("elsewhere", "the same file here"),
        "out": Slot("out-folder", "out"),
    },
    **{
        command: {"model": Slot("checkpoint", model), "file": Slot("file", file), "out": Slot("out-file", "out")}
        for command, model, file in (
            ("embed", "checkpoint", "text"),
            ("fill-mask", "masked", "masks"),
            ("next", "masked", "pairs"),
            ("classify", "classifier", "text"),
            ("tag", "tagger", "text"),
            ("answer", "answerer", "questions"),
            ("rank", "ranker", "text"),
        )
    },
    "evaluate": {
        "model": Slot("checkpoint", "classifier"),
        "file": Slot("file", "labelled"),
        "json_file": Slot("out-file", "out"),
    },
    "export": {"checkpoint": Slot("checkpoint", "checkpoint"), "out": Slot("out-file", "out")},
}
INPUT_FAULTS = ("missing", "no permission")
FAULTS = {
    "checkpoint": (*INPUT_FAULTS, "empty folder", "empty file", "binary file", "GPT-2"),
    "tokenizer": (*INPUT_FAULTS, "empty folder", "empty file", "binary file", "GPT-2"),
    "folder": (*INPUT_FAULTS, "empty folder", "empty file", "binary file", "GPT-2"),
    "file": (*INPUT_FAULTS, "empty file", "directory", "binary file"),
    "out-file": ("directory", "no permission", "full disk", "existing file", "missing parent"),
    "out-folder": ("file instead of folder", "no permission", "full disk", "GPT-2"),
    "elsewhere": (),
}
# Open ends of other parts: what a checkpoint or a reader must say.
OPEN: dict[tuple[str, str, str], str] = {}
CASES = [
    pytest.param(
        command,
        parameter,
        fault,
        id=f"{command}-{parameter}-{fault}".replace(" ", "_"),
        marks=[pytest.mark.xfail(strict=False, reason=OPEN[key]) for key in [(command, parameter, fault)] if key in OPEN],
    )
    for command, slots in SLOTS.items()
    for parameter, slot in slots.items()
    for fault in FAULTS[slot.kind]
]


def path_parameters(command: str) -> set[str]:
    """Arguments that are paths, or that name a checkpoint, a tokenizer or files by text."""
    by_text = {"checkpoint", "model", "tokenizer", "files", "config"}
    found = {name for name, kind in get_type_hints(COMMANDS[command]).items() if "Path" in str(kind) or name in by_text}
    return found - ({"config"} if command == "tune" else set())  # there the name of a size


def test_every_command_and_every_path_is_here():
    here = set(COMMANDS) - {"run"}  # whose program is not fastbert's: test_scripts
    assert here == set(CALLS) == set(SLOTS)
    assert {command: path_parameters(command) for command in here} == {c: set(slots) for c, slots in SLOTS.items()}


# What a call that works reads


@pytest.fixture(scope="module")
def room() -> Iterator[Path]:
    """A folder that other users can get into, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def good(room) -> dict[str, Path]:
    """Files, folders and checkpoints by the names of the placeholders."""
    folder = room / "good"
    folder.mkdir()
    rng = random.Random(0)

    def sentence() -> str:
        return " ".join(rng.choices(WORDS, k=4))

    def write(name: str, text: str) -> Path:
        (folder / name).write_text(text)
        return folder / name

    found = {
        "text": write("text.txt", "\n\n".join(f"{sentence()}\n{sentence()}" for _ in range(20)) + "\n"),
        "table": write("table.csv", "text,label\n" + "".join(f"{sentence()},{'yn'[n % 2]}\n" for n in range(8))),
        "labelled": write("labelled.csv", "text,label\n" + "".join(f"{sentence()},LABEL_{n % 2}\n" for n in range(8))),
        "masks": write("masks.txt", "the [MASK] sat\n"),
        "pairs": write("pairs.jsonl", json.dumps({"first": sentence(), "second": sentence()}) + "\n"),
        "questions": write("questions.jsonl", json.dumps({"question": "who sat", "context": "the cat sat"}) + "\n"),
        "config": write("config.json", json.dumps(TINY)),
    }
    for name, class_name in (
        ("checkpoint", "BertModel"),
        ("masked", "BertForPreTraining"),
        ("classifier", "BertForSequenceClassification"),
        ("tagger", "BertForTokenClassification"),
        ("answerer", "BertForQuestionAnswering"),
    ):
        found[name] = save(folder / name, class_name)
    found["ranker"] = save(folder / "ranker", "BertForSequenceClassification", num_labels=1)
    found["tokenizer"] = found["checkpoint"]
    gpt = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1, n_positions=16))
    gpt.save_pretrained(folder / "gpt2")
    found["GPT-2"] = folder / "gpt2"
    found["data"] = folder / "data"
    assert call(found, "prepare", out=found["data"]).exit_code == 0
    for path in folder.rglob("*"):  # some libraries write for the owner alone
        path.chmod(0o755 if path.is_dir() else 0o644)
    found["box"] = write("black-box.json", json.dumps({"micro-batches": []}))
    return found


def save(folder: Path, class_name: str, **changes: int) -> Path:
    folder.mkdir()
    vocabulary = [*SPECIAL, *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(vocabulary), **TINY, **changes)
    getattr(transformers, class_name)(config).save_pretrained(folder)
    return folder


def call(places: dict[str, Path], command: str, **changes: Path):
    words = [word.format(**{**places, **changes}) for word in CALLS[command].split()]
    return CliRunner().invoke(app, [command, *words], env={"COLUMNS": "200"})


# What can be wrong


@cache
def import_all() -> None:
    """What commands import when they need it: another user may not read the folders of this Python."""
    for module in pkgutil.walk_packages(fastbert.__path__, "fastbert."):
        if not module.name.endswith(("__main__", "sitecustomize")):
            importlib.import_module(module.name)


@contextmanager
def without_rights() -> Iterator[None]:
    """As a user who may write only to folders that every user may write to."""
    if os.geteuid() != 0:
        yield
        return
    import_all()
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow beyond 200 bytes, what a lock file needs: the system refuses the write, as on a full disk."""
    import resource
    import signal

    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def make(fault: str, slot: Slot, good: dict[str, Path], folder: Path) -> Path:
    """The path with this fault, for an argument."""
    name = "culprit" + (good[slot.name].suffix if slot.name in good else "")
    place = folder / name
    if fault == "missing parent":
        return folder / "culprit" / "file"
    if fault == "GPT-2":
        shutil.copytree(good["GPT-2"], place)
    elif fault in ("empty folder", "directory"):
        place.mkdir()
    elif fault in ("empty file", "existing file", "file instead of folder"):
        place.write_bytes(b"")
    elif fault == "binary file":
        place.write_bytes(random.Random(0).randbytes(4000))
    elif fault == "no permission" and slot.kind.startswith("out"):
        place.mkdir(mode=0o555)
        return place / "inner"
    elif fault == "no permission":
        (shutil.copytree if good[slot.name].is_dir() else shutil.copyfile)(good[slot.name], place)
        place.chmod(0o000)
    return place


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(("command", "parameter", "fault"), CASES)
def test_one_line_status_two_and_nothing_written(command, parameter, fault, good, room, request):
    folder = Path(tempfile.mkdtemp(dir=room))
    folder.chmod(0o777)
    slot = SLOTS[command][parameter]
    culprit = make(fault, slot, good, folder)
    places = {**good, "out": folder / "out", slot.name: culprit}
    if command == "export" and slot.name == "out" and fault in ("directory", "existing file"):
        culprit.rename(f"{culprit}.pt2")  # the call's own ending
    before = contents(folder)
    rights = without_rights() if fault == "no permission" else full_disk() if fault == "full disk" else None
    with rights or io.StringIO():
        done = call(places, command)
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    assert done.exit_code == 2, done.output
    last = done.stderr.splitlines()[-1]
    assert last.startswith("fastbert: ")
    assert sum(line.startswith("fastbert: ") for line in done.stderr.splitlines()) == 1
    if fault == "full disk":
        assert "File too large" in last  # this limit's own word for it
    hint = {"GPT-2": "gpt2"}.get(fault)
    assert culprit.name in last or f"--{parameter.replace('_', '-')}" in last or (hint and hint in last), last
    assert contents(folder) == before


@pytest.mark.parametrize(
    "command", [name for name in CALLS if name not in ("tune", "replay", "verify", "demo", "explain", "masks")]
)
def test_the_calls_work_where_nothing_is_wrong(command, good, tmp_path):
    done = call({**good, "out": tmp_path / "out"}, command)
    assert done.exit_code == 0, done.output + repr(done.exception)
    assert [path for path in tmp_path.iterdir() if path.name.startswith("out")]


# Options and configurations


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 3}, "got the unknown 'num_layers'; did you mean num_hidden_layers?"),
        ({"hidden_size": "wide"}, "Field 'hidden_size' expected int, got str"),
        ({"hidden_size": 15}, "expected hidden_size to be a multiple of num_attention_heads"),
        ({"num_hidden_layers": 0}, "expected num_hidden_layers of at least 1"),
        ({"num_attention_heads": 0}, "expected num_attention_heads of at least 1"),
        ({"hidden_dropout_prob": 3}, "expected hidden_dropout_prob from 0 to below 1"),
        ({"hidden_act": "swash"}, "expected hidden_act among "),
        ({"max_position_embeddings": 8}, "expected max_position_embeddings of at least 16, got 8"),
        ({"model_type": "roberta"}, "expected a configuration of model type 'bert', got 'roberta'"),
        ({"position_embedding_type": "relative_key"}, "expected absolute positions (position_embedding_type)"),
    ],
)
def test_a_configuration_names_its_key(change, message, good, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**TINY, **change}))
    done = call(good, "pretrain", config=config, out=tmp_path / "out")
    assert done.exit_code == 2, done.output
    assert done.stderr.splitlines()[-1].startswith("fastbert: ")
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["[1, 2]", "{", '"bert-base"'])
def test_a_configuration_that_is_no_object(content, good, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(content)
    done = call(good, "pretrain", config=config, out=tmp_path / "out")
    assert done.exit_code == 2, done.output
    assert f"in {config}, got " in done.stderr


def test_a_saved_configuration_is_taken_and_googles_own(good, tmp_path):
    google = {
        "attention_probs_dropout_prob": 0.1,
        "directionality": "bidi",
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "pooler_fc_size": 768,
        "pooler_num_attention_heads": 12,
        "pooler_num_fc_layers": 3,
        "pooler_size_per_head": 128,
        "pooler_type": "first_token_transform",
        "type_vocab_size": 2,
        "vocab_size": 119547,
    }
    (tmp_path / "google.json").write_text(json.dumps({**google, **TINY}))
    for name, config in (("google", tmp_path / "google.json"), ("saved", good["masked"] / "config.json")):
        done = call(good, "pretrain", config=config, out=tmp_path / name)
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("pretrain --data x --out y", "--steps"),
        ("pretrain --data x --steps 0 --out y", "--steps"),
        ("pretrain --data x --steps 1 --steps 2 --out y", "--steps"),
        ("pretrain --data x --steps 1 --out y --preset old", "--preset"),
        ("finetune classify --model x --train nowhere --eval y --out z", "--train"),
        ("finetune guess", "guess"),
        ("embed --pooling median a", "--pooling"),
        ("classify a", "--model"),
        ("prepare --tokenizer a --out b", "files"),
        ("verify", "checkpoint"),
        ("embed --no-such-option", "--no-such-option"),
        ("embedd", "embedd"),
        ("embed --resume --overwrite --file {text} --out {out} --model {checkpoint}", "--resume or --overwrite, got both"),
        ("embed --overwrite --model {checkpoint} text", "--out beside --overwrite"),
        ("verify {checkpoint} --overwrite", "--json beside --overwrite"),
    ],
)
def test_an_option_is_named_in_one_line(words, named, good, tmp_path):
    done = CliRunner().invoke(app, [word.format(**{**good, "out": tmp_path / "out"}) for word in words.split()])
    assert done.exit_code == 2, done.output
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("fastbert: ")]
    assert line == done.stderr.splitlines()[-1]
    assert named.lower() in line.lower()


def test_a_bug_keeps_its_traceback(good, monkeypatch):
    from fastbert.cli import inference_run

    def broken(*args, **kwargs):
        raise TypeError("unsupported operand type(s) for +: 'int' and 'str'")

    monkeypatch.setattr(inference_run, "_run", broken)
    done = CliRunner().invoke(app, ["embed", "--model", str(good["checkpoint"]), "the cat"])
    assert isinstance(done.exception, TypeError)

    def refusing(*args, **kwargs):
        raise ValueError("expected one thing, got another")

    monkeypatch.setattr(inference_run, "_run", refusing)
    assert isinstance(CliRunner().invoke(app, ["embed", "--model", str(good["checkpoint"]), "cat"]).exception, ValueError)


def test_a_damaged_table_of_tuned_tiles_is_one_line(tmp_path):
    (tmp_path / "table.json").write_text("{")
    done = CliRunner().invoke(app, ["tune", "--check", "--out", str(tmp_path / "table.json")])
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith(f"fastbert: {tmp_path / 'table.json'}: expected JSON, got ")


def test_a_file_that_is_not_there_is_named_in_words(tmp_path, capsys):
    from fastbert.cli.errors import plain_errors

    with pytest.raises(typer.Exit) as left, plain_errors():
        (tmp_path / "nowhere.txt").read_bytes()
    assert left.value.exit_code == 2
    assert capsys.readouterr().err == f"fastbert: expected a file or folder that exists, got {tmp_path / 'nowhere.txt'}\n"


def test_a_refused_argument_is_one_line_too(capsys):
    from fastbert.cli.errors import plain_errors
    from fastbert.pretraining.recipe import PRESETS

    with pytest.raises(typer.Exit) as left, plain_errors():
        PRESETS["google-2018"].num_warmup_steps(3)
    assert left.value.exit_code == 2
    assert capsys.readouterr().err == "fastbert: expected max_steps of at least warmup_steps=10000, got 3\n"
