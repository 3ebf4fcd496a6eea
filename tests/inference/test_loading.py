"""Folders that are no checkpoint, or not one for the command: one line that says what to do, never a wrong answer."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from typer.testing import CliRunner

import fastbert
from fastbert.cli.app import app as whole
from fastbert.utils.checkpoints import open_checkpoint
from fastbert.utils.errors import InputError
from tests.inference.tiny_checkpoints import PIECES, SPECIAL, WORDS, save

runner = CliRunner()
PRECISE = ["--precision", "float32"]
CLASSES = (
    "BertModel",
    "BertForPreTraining",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
)
# What each command takes.
FIT = {
    "embed": CLASSES,
    "fill-mask": ("BertForMaskedLM", "BertForPreTraining"),
    "next": ("BertForNextSentencePrediction", "BertForPreTraining"),
    "classify": ("BertForSequenceClassification",),
    "tag": ("BertForTokenClassification",),
    "answer": ("BertForQuestionAnswering",),
}
READING = (*FIT, "verify", "verify fp8", "demo", "finetune")
COMMANDS = (*READING, "explain", "export")


def run(name: str, folder: str | Path, where: Path):
    """The command on a checkpoint; what it writes goes into `where`."""
    model, texts = ["--model", str(folder), *PRECISE], where / "texts.txt"
    texts.write_text("the cat sat\na dog plays\nthe man with a ball\n")
    rows = where / "rows.csv"
    rows.write_text("text,label\nthe cat,x\na dog,y\nthe man,x\na ball,y\n")
    arguments = {
        "embed": [*model, "the cat"],
        "fill-mask": [*model, "the [MASK] sat"],
        "next": [*model, "the cat", "a dog"],
        "classify": [*model, "the cat"],
        "tag": [*model, "the cat"],
        "answer": [*model, "who sat?", "the cat sat"],
        "verify": [str(folder), "--text", str(texts), "--no-heads", "--no-kernels"],
        "verify fp8": [str(folder), "--text", str(texts), "--dtype", "fp8"],
        "explain": [str(folder)],
        "demo": [str(folder), "--text", str(texts), "--rounds", "1"],
        "export": [str(folder), "--to", "torch-export", "--out", str(where / "model.pt2"), "--no-check"],
        "finetune": [
            "classify",
            "--model",
            str(folder),
            "--train",
            str(rows),
            "--eval",
            str(rows),
            "--out",
            str(where / "out"),
            "--epochs",
            "0.5",
            "--batch-size",
            "2",
            "--max-length",
            "16",
        ],
    }
    return runner.invoke(whole, [name.split()[0], *arguments[name]])


def refused(name: str, folder: str | Path, where: Path, *words: str) -> None:
    done = run(name, folder, where)
    assert done.exit_code == 2, done.output + repr(done.exception)
    assert isinstance(done.exception, SystemExit), repr(done.exception)
    (line,) = done.stderr.splitlines()
    assert line.startswith("fastbert: expected ")
    for word in words:
        assert word in line
    assert not [*where.glob("out/**/*.safetensors"), *where.glob("model.pt2")]


def edit(folder: Path, **values) -> None:
    """Sets keys of config.json; ... takes one away."""
    content = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


@pytest.fixture
def copy(checkpoints, tmp_path):
    """A copy of a checkpoint to spoil."""

    def made(class_name: str) -> Path:
        return Path(shutil.copytree(checkpoints[class_name], tmp_path / "model"))

    return made


def own(name: str) -> str:
    return FIT[name][0] if name in FIT else "BertForMaskedLM"


# Whatever is there instead of a checkpoint

BROKEN = {
    "missing": "which does not exist",
    "file": "got the file",
    "nothing": "got nothing",
    "empty": "got an empty folder",
    "other": "got README.md, a.txt, b.txt and 1 more",
    "adapter": "got a PEFT adapter without its model: merge it with merge_and_unload()",
    "run": "checkpoint-140, the newest one there",
    "hub": "nobody/no-such-bert, no folder here; the hub: We couldn't connect",
    "gpt2": "expected a checkpoint of model type 'bert', got 'gpt2' in",
    "no config": "expected config.json and weights of a BERT checkpoint in",
    "no weights": "expected weights, model.safetensors or pytorch_model.bin, in",
    "cut weights": "got: Error while deserializing header",
    "other shapes": "expected weights of the shapes that config.json names in",
    "no JSON": "expected JSON in config.json in",
    "a list": "expected a JSON object in config.json in",
    "a word for a number": "expected a whole number as hidden_size in config.json in",
}


def broken(kind: str, where: Path, checkpoint: str) -> str:
    folder = where / "model"
    if kind == "nothing":
        return ""
    if kind == "hub":
        return "nobody/no-such-bert"
    if kind == "missing":
        return str(folder)
    if kind == "file":
        folder.write_text("x")
    elif kind == "gpt2":
        config = transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=1)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    elif kind in ("empty", "other", "adapter", "run"):
        folder.mkdir()
        for name in {"other": ("a.txt", "b.txt", "README.md", "c.txt"), "adapter": ("adapter_config.json",)}.get(kind, ()):
            (folder / name).write_text("{}")
        for step in (20, 140, 9) if kind == "run" else ():
            shutil.copytree(checkpoint, folder / f"checkpoint-{step}")
        if kind == "run":
            (folder / "checkpoint-150").mkdir()
            (folder / "recipe.json").write_text("{}")
    else:
        shutil.copytree(checkpoint, folder)
    if kind == "no config":
        (folder / "config.json").unlink()
    weights = folder / "model.safetensors"
    if kind == "no weights":
        weights.unlink()
    if kind == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-1000])
    if kind == "other shapes":
        edit(folder, intermediate_size=48)
    if kind in ("no JSON", "a list"):
        (folder / "config.json").write_text("{" if kind == "no JSON" else "[1]")
    if kind == "a word for a number":
        edit(folder, hidden_size="x")
    return str(folder)


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_no_checkpoint_is_one_line(checkpoints, tmp_path, name, kind):
    if name == "finetune" and kind == "other shapes":
        words = ["expected the encoder's own shapes in", "others for bert."]  # a head may have others
    else:
        words = [BROKEN[kind]]
    folder = broken(kind, tmp_path, checkpoints[own(name)])
    if kind == "run":
        words.append(f"use {folder}/checkpoint-140")
    refused(name, folder, tmp_path, *words)


@pytest.mark.parametrize("kind", BROKEN)
def test_the_functions_say_the_same(checkpoints, tmp_path, kind):
    folder = broken(kind, tmp_path, checkpoints["BertModel"])
    with pytest.raises(InputError) as error:
        fastbert.embed("the cat", folder)
    assert BROKEN[kind] in str(error.value)
    assert "\n" not in str(error.value)


def test_a_path_that_can_be_no_name_of_the_hub_is_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("./a", "../a/b", "a/b/c", "a/", "~/a", str(tmp_path / "a")):
        with pytest.raises(
            InputError, match=r"expected a folder or a hub name of a BERT checkpoint, got .*, which does not exist"
        ):
            open_checkpoint(path)


# Tokenizers that do not belong to the weights


def no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)


def write_tokenizer(folder: Path, vocabulary: list[str]) -> None:
    no_tokenizer(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)


ENTRIES = list(dict.fromkeys(SPECIAL + WORDS + PIECES))


def spoil(kind: str, folder: Path) -> None:
    if kind == "none":
        no_tokenizer(folder)
    elif kind == "its settings alone":
        for name in ("tokenizer.json", "vocab.txt"):
            (folder / name).unlink(missing_ok=True)
    elif kind == "special tokens alone":
        write_tokenizer(folder, SPECIAL)
    elif kind == "larger":
        write_tokenizer(folder, [*ENTRIES, "unheard", "of"])
    elif kind == "damaged":
        (folder / "tokenizer.json").write_text("{")
    elif kind == "a word for its limit":
        settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"model_max_length": "many"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    elif kind == "another mask":
        edit(folder, mask_token_id=3)
    else:
        write_tokenizer(folder, ["first", *ENTRIES[:-1]])


ABSENT = ("none", "its settings alone")
MISFIT = {
    "special tokens alone": "got one of special tokens alone, to which every word is unknown",
    "larger": "got one of 99 entries, ids to 98, for a vocab_size of 97",
    "damaged": "got one that cannot be read (",
    "a word for its limit": "got one whose model_max_length is 'many', which leaves no room for a text",
    "another mask": "got one whose mask_token_id is 4, not 3 as mask_token_id in config.json",
    "padding that is a word": "got one whose entry 0, pad_token_id in config.json, is the word 'first'",
}
ADVICE = "put its files, tokenizer.json or vocab.txt and tokenizer_config.json, beside the weights"


@pytest.mark.parametrize("kind", [*ABSENT, *MISFIT])
@pytest.mark.parametrize("name", READING)
def test_a_tokenizer_that_does_not_belong_to_the_weights(copy, tmp_path, name, kind):
    folder = copy(own(name))
    spoil(kind, folder)
    got = MISFIT.get(kind, "was trained with, got none:")
    refused(name, folder, tmp_path, f"expected the tokenizer that {folder} was trained with, got", got, ADVICE)


def test_words_are_never_all_unknown(copy):
    """The tokenizer that transformers makes where there is none."""
    folder = copy("BertModel")
    no_tokenizer(folder)
    made = transformers.AutoTokenizer.from_pretrained(folder)
    assert made("hello")["input_ids"] == made("안녕")["input_ids"]
    model = fastbert.BertModel.from_pretrained(folder).eval()
    for given in (str(folder), (model, made)):
        with pytest.raises(InputError, match=r"expected the tokenizer that .* was trained with, got"):
            fastbert.embed(["hello", "안녕"], given)


def test_what_reads_no_text_needs_no_tokenizer(copy, tmp_path):
    folder = copy("BertForMaskedLM")
    spoil("none", folder)
    for name in ("explain", "export"):
        assert run(name, folder, tmp_path).exit_code == 0
    (tmp_path / "model.pt2").unlink()
    spoil("larger", folder)
    assert run("explain", folder, tmp_path).exit_code == 0
    refused("export", folder, tmp_path, MISFIT["larger"])  # whoever runs the export takes this one


@pytest.mark.parametrize("kind", ["padded", "added", "padding elsewhere", "vocab.txt", "tokenizer.json", "said as it is"])
def test_a_tokenizer_that_belongs_to_them(tmp_path, kind):
    folder = tmp_path / "model"
    rows = {"padded": 128, "added": 99}.get(kind, len(ENTRIES))
    save(folder, "BertForMaskedLM")
    config = transformers.BertConfig.from_pretrained(folder, vocab_size=rows)
    if kind == "padding elsewhere":  # as in the documentation of the library `tokenizers`
        write_tokenizer(folder, ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", *ENTRIES[5:]])
    elif kind == "added":
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(["unheard"])
        tokenizer.add_special_tokens({"additional_special_tokens": ["[E1]"]})
        tokenizer.save_pretrained(folder)
    elif kind == "said as it is":
        config.cls_token_id, config.mask_token_id, config.bos_token_id, config.eos_token_id = 2, 4, 0, 0  # of generation
    elif kind == "vocab.txt":
        (folder / "tokenizer.json").unlink()
    elif kind == "tokenizer.json":
        (folder / "vocab.txt").unlink(missing_ok=True)
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    assert len(fastbert.fill_mask("the [MASK] sat", str(folder))[0]) == 5
    assert fastbert.embed("the cat", str(folder)).shape == (32,)
    assert open_checkpoint(str(folder)).misfit is None


# Checkpoints of another task


@pytest.mark.parametrize("class_name", CLASSES)
@pytest.mark.parametrize("name", FIT)
def test_each_command_takes_the_classes_that_fit(checkpoints, tmp_path, name, class_name):
    if class_name in FIT[name]:
        done = run(name, checkpoints[class_name], tmp_path)
        assert done.exit_code == 0, done.output
        return
    wanted = " or ".join(FIT[name])
    words = f"expected a checkpoint of {wanted}, got one of {class_name} in {checkpoints[class_name]}"
    refused(name, checkpoints[class_name], tmp_path, words, "`fastbert finetune` gives it a head")


def test_a_classifier_of_texts_has_the_weights_of_a_tagger(copy):
    """Only the name tells them apart: without it neither is taken."""
    folder = copy("BertForSequenceClassification")
    names = {name for name in fastbert.BertForTokenClassification.from_pretrained(folder).state_dict()}
    assert names <= set(fastbert.BertForSequenceClassification.from_pretrained(folder).state_dict())
    with pytest.raises(
        InputError, match="expected a checkpoint of BertForTokenClassification, got one of BertForSequenceClass"
    ):
        fastbert.tag("the cat", str(folder))
    edit(folder, architectures=...)
    for call in (fastbert.tag, fastbert.classify):
        with pytest.raises(InputError, match=r'expected architectures in .*, got none.* add "architectures": \["BertFor'):
            call("the cat", str(folder))
    edit(folder, architectures=["BertForSequenceClassification"])
    assert fastbert.classify("the cat", str(folder))


def test_a_left_to_right_model_makes_vectors_and_fills_no_masks(tmp_path):
    folder = save(tmp_path / "model", "BertLMHeadModel", is_decoder=True)
    assert fastbert.embed("the cat", folder).shape == (32,)
    with pytest.raises(InputError, match="got one of BertLMHeadModel in"):
        fastbert.fill_mask("the [MASK]", folder)


@pytest.mark.parametrize("name", ["embed", "fill-mask", "next", "answer"])
def test_weights_that_tell_themselves_need_no_architectures(copy, tmp_path, name):
    folder = copy(own(name))
    edit(folder, architectures=...)
    done = run(name, folder, tmp_path)
    assert done.exit_code == 0, done.output


def test_a_class_of_someone_elses_is_not_taken_for_ones_own(copy):
    folder = copy("BertModel")
    edit(folder, architectures=["JinaBertForMaskedLM"])
    with pytest.raises(InputError, match="expected a checkpoint of one of BERT's classes, got one of JinaBertForMaskedLM in"):
        fastbert.embed("the cat", str(folder))


# A configuration without a model type


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("settings", [True, False], ids=["tokenizer_config", "alone"])
def test_a_configuration_without_a_model_type_is_read(copy, tmp_path, name, settings):
    folder = copy(own(name))
    edit(folder, model_type=...)
    if not settings:
        (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="Should have a `model_type` key"):
        transformers.AutoConfig.from_pretrained(folder)
    done = run(name, folder, tmp_path)
    assert done.exit_code == (done.exit_code == 1 and name == "verify fp8"), done.output  # whose verdict is its own
    if name != "verify fp8":
        return
    assert "THE LIMITS" in done.output


def test_without_a_model_type_the_sizes_or_the_classes_are_berts(copy):
    folder = copy("BertModel")
    expected = fastbert.embed("the cat", str(folder))
    edit(folder, model_type=..., architectures=...)
    assert torch.equal(torch.tensor(fastbert.embed("the cat", str(folder))), torch.tensor(expected))
    edit(folder, type_vocab_size=...)
    with pytest.raises(InputError, match="expected a checkpoint of model type 'bert', got none, and not the sizes of one in"):
        fastbert.embed("the cat", str(folder))
    edit(folder, architectures=["RobertaModel"])
    with pytest.raises(InputError, match="model type 'bert', got none, and architectures RobertaModel in"):
        fastbert.embed("the cat", str(folder))


# Weights that are missing


@pytest.mark.parametrize("name", ["verify", "explain", "demo", "export", "verify fp8", "embed", "finetune"])
def test_an_encoder_without_a_weight_is_never_random(copy, tmp_path, name):
    from safetensors.torch import load_file, save_file

    folder = copy(own(name))
    weights = load_file(folder / "model.safetensors")
    (gone,) = (key for key in weights if key.endswith("layer.1.output.dense.weight"))
    del weights[gone]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(name, folder, tmp_path, "encoder.layer.1.output.dense.weight", str(folder))


def test_an_encoder_may_lack_the_pooler(tmp_path):
    folder = Path(save(tmp_path / "model", "BertForMaskedLM"))
    edit(folder, architectures=["BertModel"])
    for name in ("explain", "verify", "demo", "embed"):
        done = run(name, folder, tmp_path)
        assert done.exit_code == 0, done.output
