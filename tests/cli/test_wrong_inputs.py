"""What a newcomer gets wrong: one line that says what was expected and what came, status 2, and nothing written.

Wrong paths of every argument of every command are in `test_errors`; here are contents, values and combinations.
"""

import json
import pickle
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from typer.testing import CliRunner

import fastbert
from fastbert.cli.app import app
from fastbert.utils.errors import InputError

WORDS = "the a cat dog sat ran on in mat park who where big small".split()
SIZES = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=32)


class Unpicklable:
    def __reduce__(self):
        return exec, ("raise SystemExit('this file was unpickled')",)


def save(folder: Path, class_name: str) -> None:
    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    getattr(transformers, class_name)(transformers.BertConfig(vocab_size=len(vocabulary), **SIZES)).save_pretrained(folder)


def changed(source: Path, folder: Path, **values) -> None:
    """A copy of a checkpoint with other values in its config.json."""
    shutil.copytree(source, folder)
    content = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """The newcomer's folder, with right and wrong files."""
    desk = tmp_path_factory.mktemp("desk")
    for name, class_name in (
        ("bert", "BertModel"),
        ("masked", "BertForPreTraining"),
        ("classifier", "BertForSequenceClassification"),
        ("tagger", "BertForTokenClassification"),
        ("reader", "BertForQuestionAnswering"),
    ):
        save(desk / name, class_name)
    good = desk / "classifier"
    changed(good, desk / "negative-heads", num_attention_heads=-1)
    changed(good, desk / "odd-heads", num_attention_heads=3)
    changed(good, desk / "zero-size", hidden_size=0)
    changed(good, desk / "words-for-numbers", hidden_size="big")
    changed(good, desk / "large-dropout", hidden_dropout_prob=1.5)
    changed(good, desk / "odd-activation", hidden_act="swash")
    changed(good, desk / "roberta", model_type="roberta")
    changed(good, desk / "wider", hidden_size=32)
    for name, file, content in (
        ("broken-json", "config.json", b"{"),
        ("list-json", "config.json", b"[1]"),
        ("truncated", "model.safetensors", (good / "model.safetensors").read_bytes()[:500]),
        ("empty-weights", "model.safetensors", b""),
        ("binary-vocabulary", "tokenizer.json", random.Random(0).randbytes(500)),
    ):
        shutil.copytree(good, desk / name)
        (desk / name / file).write_bytes(content)
    for name, files in (
        ("no-config", ["config.json"]),
        ("no-weights", ["model.safetensors"]),
        ("no-tokenizer", ["tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"]),
    ):
        shutil.copytree(good, desk / name)
        for file in files:
            (desk / name / file).unlink(missing_ok=True)
    shutil.copytree(good, desk / "pickled")
    (desk / "pickled" / "model.safetensors").unlink()
    (desk / "pickled" / "pytorch_model.bin").write_bytes(pickle.dumps(Unpicklable()))
    (desk / "run").mkdir()
    shutil.copytree(good, desk / "run" / "checkpoint-20")
    rng = random.Random(0)
    lines = [" ".join(rng.choices(WORDS, k=4)) for _ in range(8)]
    for name, content in (
        ("texts.txt", "\n".join(lines)),
        ("empty.txt", ""),
        ("blank.txt", "\n\n\n"),
        ("latin.txt", "caf\xe9\n".encode("latin-1")),
        ("binary.txt", random.Random(0).randbytes(500)),
        ("json.txt", '{"text": "the cat"}\n'),
        ("texts.xlsx", "the cat"),
        ("broken.jsonl", '{"text": "the cat"}\n{"text": \n'),
        ("numbers.jsonl", '{"text": 3}\n'),
        ("other.csv", "body,id,more\nthe cat,1,2\n"),
        ("ragged.csv", "text,id\nthe cat,1,2,3\n"),
        ("two.csv", "first,second\nthe cat,a dog\n"),
        ("train.csv", "text,label\n" + "".join(f"{line},{'yn'[i % 2]}\n" for i, line in enumerate(lines))),
        ("one-label.csv", "text,label\n" + "".join(f"{line},y\n" for line in lines)),
        ("new-label.csv", "text,label\nthe cat,purple\n"),
        ("no-label.csv", "text,other\nthe cat,y\n"),
        ("questions.json", json.dumps({"data": [{"paragraphs": 3}]})),
        ("untagged.conll", "the\ncat\n"),
        ("one.txt", "the cat sat\n"),
        ("config.json", json.dumps(SIZES)),
        ("exists.jsonl", "mine\n"),
    ):
        (desk / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (desk / "mine").mkdir()
    (desk / "mine" / "thesis.tex").write_text("mine")
    (desk / "empty-folder").mkdir()
    return desk


TRAIN = "--train train.csv --eval train.csv --out new"
# (what is typed after `fastbert`, what the line says was expected, what came)
WRONG = [
    # checkpoints
    ("classify --model negative-heads a", "num_attention_heads of at least 1", "got -1"),
    ("explain odd-heads", "hidden_size to be a multiple of num_attention_heads", "got 16 and 3"),
    ("verify zero-size", "hidden_size of at least 1", "got 0"),
    ("demo words-for-numbers", "a whole number as hidden_size", "got 'big'"),
    ("export large-dropout --to torch-export --out new.pt2", "hidden_dropout_prob from 0 to below 1", "got 1.5"),
    ("classify --model odd-activation a", "odd-activation", "swash"),
    ("finetune classify --model roberta " + TRAIN, "model type 'bert'", "got 'roberta'"),
    ("classify --model wider a", "weights of the shapes that config.json names", "got"),
    ("classify --model broken-json a", "JSON in config.json in broken-json", "got"),
    ("explain list-json", "a JSON object in config.json", "got list"),
    ("classify --model truncated a", "weights", "truncated"),
    ("classify --model empty-weights a", "weights", "empty-weights"),
    ("classify --model binary-vocabulary a", "the tokenizer that binary-vocabulary was trained with", "cannot be read"),
    ("classify --model no-config a", "config.json and weights", "got model.safetensors"),
    ("explain no-weights", "model.safetensors or pytorch_model.bin", "got neither"),
    ("classify --model no-tokenizer a", "the tokenizer that no-tokenizer was trained with", "got none"),
    ("explain pickled", "weights", "pickled"),
    ("explain run", "a checkpoint", "use run/checkpoint-20"),
    ("explain empty-folder", "config.json and weights", "got an empty folder"),
    ("explain ./nowhere", "a folder or a hub name of a BERT checkpoint", "got ./nowhere, which does not exist"),
    ("explain texts.txt", "a folder or a hub name of a BERT checkpoint", "got the file texts.txt"),
    ("classify --model bert a", "BertForSequenceClassification", "got one of BertModel"),
    ("tag --model classifier a", "BertForTokenClassification", "got one of BertForSequenceClassification"),
    # inputs
    ("classify --model classifier --file nowhere.txt", "a file or folder that exists", "got nowhere.txt"),
    ("classify --model classifier --file mine", "--file", "mine"),
    ("classify --model classifier --file empty.txt", "texts", "got none"),
    ("embed --model bert --file latin.txt", "UTF-8", "latin.txt"),
    ("embed --model bert --file binary.txt", "UTF-8", "binary.txt"),
    ("embed --model bert --file json.txt", "texts, one a line", "got JSON"),
    ("embed --model bert --file texts.xlsx", ".csv", "texts.xlsx"),
    ("embed --model bert --file broken.jsonl", "JSON", "line 2"),
    ("embed --model bert --file numbers.jsonl", "expected text", "got int"),
    ("embed --model bert --file other.csv", "columns text", "got body, id, more"),
    ("embed --model bert --file other.csv --field boddy", "columns boddy", "got body, id, more"),
    ("embed --model bert --file ragged.csv", "2", "line 2"),
    ("embed --model bert --file texts.txt --field text", "beside a named field", "got text"),
    ("answer --model reader --file two.csv", "columns question and context", "got first, second"),
    ("answer --model reader who", "question and context as arguments", "got 1 argument"),
    ("fill-mask --model masked cat", "[MASK]", "argument 1"),
    ("embed --model bert --file texts.txt cat", "arguments or --file", "got both"),
    # outputs
    ("embed --model bert --file texts.txt --out exists.jsonl", "a new output", "got exists.jsonl, which exists"),
    ("embed --model bert --file texts.txt --out exists.csv", "--out to end in .jsonl", "got exists.csv"),
    ("embed --model bert --file texts.txt --out nowhere/new.jsonl", "a folder that exists", "got nowhere"),
    ("embed --model bert --resume cat", "--file and --out beside --resume", ""),
    ("export classifier --to torch-export --out new.bin", "a name that ends in .pt2", "got new.bin"),
    ("finetune classify --model bert --train train.csv --eval train.csv --out mine", "a new or empty folder", "thesis.tex"),
    ("pretrain --data data --steps 1 --out mine", "a new or empty folder", "thesis.tex"),
    ("tokenizer texts.txt --out mine", "a new or empty folder", "thesis.tex"),
    ("prepare texts.txt --tokenizer bert --out mine", "a new or empty folder", "thesis.tex"),
    ("verify bert --json exists.jsonl", "a new output", "got exists.jsonl, which exists"),
    # training
    ("finetune classify --model bert --train train.csv --eval new-label.csv --out new", "label", "got 'purple'"),
    ("finetune classify --model bert --train one-label.csv --eval train.csv --out new", "at least two labels", "got y"),
    ("finetune classify --model bert --train no-label.csv --eval train.csv --out new", "label", "got text, other"),
    ("finetune classify --model bert --column colour=text " + TRAIN, "ROLE=NAME", "colour=text"),
    ("finetune qa --model bert --train questions.json --eval questions.json --out new", "paragraphs", "questions.json"),
    ("finetune tag --model bert --train untagged.conll --eval untagged.conll --out new", "a word and a tag", "got"),
    ("finetune classify --model bert --learning-rate -1 " + TRAIN, "a positive learning rate", "got -1"),
    ("finetune classify --model bert --epochs 0 " + TRAIN, "a positive learning rate and epochs", "0.0"),
    ("finetune classify --model bert --max-length 600 " + TRAIN, "a max_length from 8 to 32", "got 600"),
    ("finetune classify --model bert --head bilstm " + TRAIN, "--frozen LAYERS beside --head", "got none"),
    ("pretrain --data mine --steps 1 --out new", "finished `fastbert prepare`", "mine"),
    ("pretrain --data mine --steps 1 --out new --config bert-huge", "bert-small", "got bert-huge"),
    ("pretrain --data mine --steps 1 --out new --learning-rate 0", "a positive learning rate", "got 0.0"),
    ("tokenizer texts.txt --out new --vocab-size 3", "more than the 5 special tokens", "got 3"),
    ("tokenizer texts.txt --out new --character-coverage 2", "a character coverage above 0", "got 2.0"),
    ("tokenizer texts.xlsx --out new", ".txt", "got texts.xlsx"),
    ("tokenizer blank.txt --out new", "documents in blank.txt", "got none"),
    ("prepare one.txt --tokenizer bert --out new --seq-len 16 --workers 1", "at least two documents", "got 1"),
    ("prepare texts.txt --tokenizer empty-folder --out new", "a BERT tokenizer", "got empty-folder"),
    ("prepare texts.txt --tokenizer bert --out new --workers 0", "at least one process", "got 0"),
    ("prepare texts.txt --tokenizer bert --out new --seq-len -4", "sequence length", "got -4"),
    ("masks mine", "finished `fastbert prepare`", "mine"),
    # values of options
    ("embed --model bert --batch-tokens -5 a", "--batch-tokens", "-5"),
    ("embed --model bert --pooling median a", "--pooling", "median"),
    ("tune --rows 100", "powers of two", "got '100'"),
    ("tune --config bert-huge", "bert-small", "got 'bert-huge'"),
    ("verify bert --dtype fp8 --cosine 2", "a cosine in (0, 1)", "got 2.0"),
    ("verify bert --cosine 0.9", "--dtype fp8", "--cosine"),
    ("run nowhere.py", "a Python file", "got nowhere.py"),
]


@pytest.mark.parametrize(("words", "expected", "got"), WRONG, ids=[f"{n}-{words[:50]}" for n, (words, *_) in enumerate(WRONG)])
def test_one_line_says_what_was_expected_and_what_came(words, expected, got, desk, monkeypatch):
    monkeypatch.chdir(desk)
    before = {path: path.stat().st_mtime_ns for path in desk.rglob("*")}
    done = CliRunner().invoke(app, words.split())
    assert isinstance(done.exception, SystemExit), repr(done.exception)
    assert done.exit_code == 2, done.output
    lines = [line for line in done.stderr.splitlines() if line.startswith("fastbert: ")]
    assert lines == done.stderr.splitlines()[-1:], done.stderr
    assert expected in lines[0], lines[0]
    assert got in lines[0], lines[0]
    assert "Traceback" not in done.output
    assert {path: path.stat().st_mtime_ns for path in desk.rglob("*")} == before


CALLS = [
    (lambda: fastbert.classify("a", "./nowhere"), "a folder or a hub name of a BERT checkpoint, got ./nowhere"),
    (lambda: fastbert.classify("a", "negative-heads"), "num_attention_heads of at least 1 .* got -1"),
    (lambda: fastbert.classify("a", "classifier", device="gpu"), "a device such as cpu, cuda or cuda:1, got 'gpu'"),
    (lambda: fastbert.embed([3], "bert"), "a text or a pair of texts, got int in row 1"),
    (lambda: fastbert.answer(["who"], ["a", "b"], "reader"), "expected"),
    (lambda: fastbert.fill_mask("cat", "masked"), r"\[MASK\]"),
    (lambda: list(fastbert.verify("roberta")), "model type 'bert', got 'roberta'"),
]


@pytest.mark.parametrize(("call", "message"), CALLS, ids=[message[:40] for _, message in CALLS])
def test_functions_say_the_same(call, message, desk, monkeypatch):
    monkeypatch.chdir(desk)
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(desk):
    with pytest.raises(InputError, match="a device of this machine, got cuda, and PyTorch sees 0 GPUs"):
        fastbert.classify("a", desk / "classifier", device="cuda")
    done = CliRunner().invoke(app, ["tune"])
    assert (done.exit_code, re.match("fastbert: expected a GPU to measure on", done.stderr) is not None) == (2, True)
