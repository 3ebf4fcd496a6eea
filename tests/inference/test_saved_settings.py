"""A model that was fine-tuned here, then used: the lengths, thresholds and words it was trained with are those it runs with."""

import io
import json
import shutil

import pytest
import torch
import transformers
from rich.console import Console
from typer.testing import CliRunner

import fastbert
from fastbert.finetuning.data import DataOptions
from fastbert.finetuning.options import Options, Setting
from fastbert.finetuning.run import finetune
from fastbert.inference.answering import Answering
from fastbert.inference.classification import Classification
from fastbert.inference.tagging import Tagging
from fastbert.utils.errors import InputError
from tests.inference.tiny_checkpoints import save

runner = CliRunner()
pytest.importorskip("accelerate", reason="fine-tuning needs the train extra")
pytest.importorskip("seqeval", reason="fine-tuning needs the train extra")
CONTEXT = "the cat sat on the mat and the dog sat down . " * 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """task -> folder of a model trained for one step with the data options."""
    root = tmp_path_factory.mktemp("trained")
    base = save(root / "base", "BertModel")
    made: dict[str, str] = {}

    def run(task: str, content: str, suffix: str, **options) -> str:
        if task not in made:
            file = root / f"{task}{suffix}"
            file.write_text(content)
            data = DataOptions(file, file, **options)
            setting = Setting(batch_size=2, learning_rate=1e-4, epochs=1)
            finetune(Options(task, base, data, root / task, setting), Console(file=io.StringIO()))
            made[task] = str(root / task)
        return made[task]

    return run


@pytest.fixture
def asked(trained) -> str:
    questions = [
        {"id": "a", "question": "who ?", "answers": [{"text": "cat", "answer_start": 4}]},
        {"id": "b", "question": "when ?", "answers": [], "is_impossible": True},
    ]
    content = json.dumps({"data": [{"paragraphs": [{"context": CONTEXT, "qas": questions}]}]})
    return trained("qa", content, ".json", max_length=32, stride=7, max_answer_length=5)


@pytest.fixture
def tagged(trained) -> str:
    return trained("tag", "t\tB-PER\nh\tI-PER\ne\tO\n \tO\nc\tB-LOC\n\na\tO\nn\tO\n", ".conll", max_length=24, stride=5)


@pytest.fixture
def labelled(trained) -> str:
    return trained("classify", "text,label\nthe cat,yes\nthe dog,no\n", ".csv", max_length=10)


def test_answers_in_the_windows_and_with_the_threshold_of_training(asked, app):
    saved = transformers.AutoConfig.from_pretrained(asked).fastbert_task
    task = Answering(asked)
    assert (task.max_length, task.stride, task.max_answer_length) == (32, 7, 5)
    assert task.null_threshold == saved["null_threshold"] != 0.0
    assert task.saved.used == {name: value for name, value in saved.items() if name != "task"}
    done = runner.invoke(app, ["answer", "--model", asked, "--top", "3", "who ?", CONTEXT])
    assert done.exit_code == 0, done.output
    settings = "max_length 32, stride 7, max_answer_length 5, with_none True, null_threshold "
    assert f"as it was fine-tuned, {settings}{saved['null_threshold']}" in done.stderr
    found = json.loads(done.stdout)["answers"]
    same = fastbert.answer(
        "who ?", CONTEXT, asked, top=3, null_threshold=saved["null_threshold"], max_length=32, stride=7, max_answer_length=5
    )
    assert found == same
    assert found != fastbert.answer("who ?", CONTEXT, asked, top=3, max_answer_length=1)


def test_what_is_said_wins_over_what_is_saved(asked, app):
    task = Answering(asked, null_threshold=None, max_length=40, max_answer_length=2)
    assert (task.max_length, task.max_answer_length, task.null_threshold) == (40, 2, None)
    assert task.stride == 13  # a third: the saved one belongs to windows of 32
    assert task.saved.used == {}
    assert Answering(asked, stride=3).stride == 3
    never = ["answer", "--model", asked, "--null-threshold=-1e9", "who ?", CONTEXT]
    always = ["answer", "--model", asked, "--always-answer", "who ?", CONTEXT]
    answers = [json.loads(runner.invoke(app, one).stdout)["answers"][0]["answer"] for one in (never, always)]
    assert answers[0] == "" != answers[1]
    both = runner.invoke(app, [*always, "--null-threshold", "1"])
    assert both.exit_code == 2
    assert "expected --null-threshold or --always-answer, got both" in both.output


def test_tags_of_characters(tagged, app):
    task = Tagging(tagged)
    assert (task.max_length, task.stride, task.characters) == (24, 5, True)
    text = "the cat " * 12
    done = runner.invoke(app, ["tag", "--model", tagged, text])
    assert done.exit_code == 0, done.output
    assert "as it was fine-tuned, max_length 24, stride 5, characters True" in done.stderr
    found = json.loads(done.stdout)
    assert found["words"] == list(text)
    assert len(found["tags"]) == len(text)
    assert all(text[one["start"] : one["end"]] == one["word"] for one in found["entities"])
    assert fastbert.tag(text, tagged, characters=False)["words"] == text.split()
    words = runner.invoke(app, ["tag", "--model", tagged, "--words", text])
    assert json.loads(words.stdout)["words"] == text.split()


def test_a_flag_that_is_off_is_not_printed(tmp_path, tagged, app):
    folder = tmp_path / "words"
    shutil.copytree(tagged, folder)
    config = json.loads((folder / "config.json").read_text())
    config["fastbert_task"]["characters"] = False
    (folder / "config.json").write_text(json.dumps(config))
    done = runner.invoke(app, ["tag", "--model", str(folder), "the cat"])
    assert done.exit_code == 0, done.output
    assert "as it was fine-tuned, max_length 24, stride 5\n" in done.stderr


def test_texts_are_cut_where_training_cut_them(labelled, app):
    assert Classification(labelled).max_length == 10
    done = runner.invoke(app, ["classify", "--model", labelled, "the cat " * 10])
    assert "as it was fine-tuned, max_length 10" in done.stderr
    assert "texts cut at 10 tokens: 1" in done.stderr
    wide = runner.invoke(app, ["classify", "--model", labelled, "--max-length", "30", "the cat " * 10])
    assert "fine-tuned" not in wide.stderr
    assert "texts cut" not in wide.stderr
    with pytest.raises(InputError, match=r"expected a max_length from 3 to 64, the limit of .*, got 65"):
        Classification(labelled, max_length=65)


def test_settings_of_another_task_are_not_taken_and_wrong_ones_are_refused(labelled, tmp_path):
    model = fastbert.BertForSequenceClassification.from_pretrained(labelled, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(labelled)
    model.config.fastbert_task = {"task": "tag", "max_length": 10}
    assert Classification((model, tokenizer)).max_length == 64
    model.config.fastbert_task = {"task": "classify", "max_length": "ten"}
    with pytest.raises(InputError, match=r"expected fastbert_task.max_length as fine-tuning writes it in .*, got 'ten'"):
        Classification((model, tokenizer))
