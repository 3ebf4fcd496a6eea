"""Texts in the order of a cross-encoder's scores: that of sentence-transformers' own `rank`."""

import json

import pytest
import torch
from typer.testing import CliRunner

import fastbert
from fastbert.cli.app import app
from fastbert.utils.errors import InputError
from tests.inference.sentence_folders import FP32, CrossEncoder
from tests.inference.test_cross_encoder import cross_encoder

QUERY = "who plays guitar ?"


@pytest.mark.filterwarnings("ignore:texts cut")
@pytest.mark.parametrize("activation", [None, torch.nn.Identity()])
@pytest.mark.parametrize("options", [{}, {"prompts": {"ask": "please "}, "default_prompt_name": "ask", "max_length": 24}])
def test_the_order_and_scores_are_those_of_sentence_transformers(tmp_path, sentences, activation, options):
    folder = cross_encoder(tmp_path / "a", 1, activation, **options)
    texts = [*sentences, sentences[0]]  # equal scores keep their order
    expected = CrossEncoder(folder, device="cpu").rank(QUERY, texts, return_documents=True)
    found = fastbert.rank(QUERY, texts, folder, **FP32)
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-5)
    assert sorted(one["index"] for one in found) == list(range(len(texts)))
    assert all(texts[one["index"]] == one["text"] for one in found)
    places = [one["index"] for one in found]
    assert places.index(0) + 1 == places.index(len(texts) - 1)
    by_score = {one["corpus_id"]: one["score"] for one in expected}
    assert [by_score[place] for place in places] == pytest.approx(sorted(by_score.values(), reverse=True), abs=1e-5)
    assert fastbert.rank(QUERY, iter(texts), folder, top=5, **FP32) == found[:5]
    assert fastbert.Encoder(folder, **FP32).rank(QUERY, texts, top=1000) == found
    assert fastbert.rank(QUERY, [], folder) == []


def test_what_cannot_be_ranked(checkpoints, tmp_path):
    folder = cross_encoder(tmp_path / "a", 1)
    three = checkpoints["BertForSequenceClassification"]
    with pytest.raises(InputError, match="expected a cross-encoder, which gives a pair one score, got 3 labels in"):
        fastbert.rank(QUERY, ["a"], three)
    with pytest.raises(InputError, match="expected a text as query and several texts to rank, got str and str"):
        fastbert.rank(QUERY, "a", folder)
    with pytest.raises(InputError, match="expected top of at least 1 or None, got 0"):
        fastbert.rank(QUERY, ["a"], folder, top=0)
    with pytest.raises(InputError, match="expected text, got int in row 2"):
        fastbert.rank(QUERY, ["a", 3], folder)


def test_the_command(tmp_path, sentences):
    folder = cross_encoder(tmp_path / "a", 1)
    texts = sentences[:9]
    expected = fastbert.rank(QUERY, texts, folder, **FP32)
    file = tmp_path / "texts.csv"
    file.write_text("id,text,score\n" + "".join(f'{number},"{text}",x\n' for number, text in enumerate(texts, 10)))
    options = ["rank", QUERY, "--model", folder, "--precision", "float32"]

    def run(*more: object, status: int = 0):
        done = CliRunner().invoke(app, [*options, *map(str, more)])
        assert done.exit_code == status, done.output + repr(done.exception)
        return done

    done = run("--file", file)
    assert "a CrossEncoder, its scores by Sigmoid of the logits" in done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["rank"] for row in rows] == list(range(1, 10))
    assert [row["row"] for row in rows] == [one["index"] + 1 for one in expected]
    assert [row["score"] for row in rows] == pytest.approx([one["score"] for one in expected], abs=1e-6)
    assert all(texts[row["row"] - 1] == row["text"] and row["id"] == str(row["row"] + 9) for row in rows)
    assert {row["input_score"] for row in rows} == {"x"}  # its own column keeps its value

    out = tmp_path / "ranked.jsonl"
    run("--file", file, "--top", 3, "--out", out)
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows[:3]
    assert "expected a new output, --overwrite" in run("--file", file, "--out", out, status=2).stderr
    run("--out", out, "--overwrite", "--", *texts)
    assert [json.loads(line)["row"] for line in out.read_text().splitlines()] == [row["row"] for row in rows]

    assert "expected arguments or --file, got both" in run("a", "--file", file, status=2).stderr
    assert "expected --out beside --overwrite" in run("a", "--overwrite", status=2).stderr
    file.write_text("")
    assert f"expected texts in {file}, got none" in run("--file", file, status=2).stderr


def test_arguments_make_a_table_on_a_terminal(tmp_path, monkeypatch):
    from fastbert.cli import inference_run

    folder = cross_encoder(tmp_path / "a", 1)
    monkeypatch.setattr(inference_run, "is_terminal", lambda: True)
    done = CliRunner().invoke(app, ["rank", QUERY, "--model", folder, "a dog [red]", "the man"])
    assert done.exit_code == 0, done.output
    for text in ("rank", "score", "a dog [red]", "the man"):
        assert text in done.stdout
