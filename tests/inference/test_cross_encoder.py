"""Cross-encoders that sentence-transformers saves: scores are those of its own class."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from typer.testing import CliRunner

from fastbert.inference.classification import classify
from fastbert.inference.embedding import embed
from fastbert.utils.errors import InputError
from tests.inference.sentence_folders import FP32, PAIRS, CrossEncoder, build, edit
from tests.inference.tiny_checkpoints import save

runner = CliRunner()


def cross_encoder(folder: Path, labels: int, activation=None, **options) -> str:
    base = save(folder.with_name(f"{folder.name}-base"), "BertForSequenceClassification", num_labels=labels)
    made = CrossEncoder(base, device="cpu", **({} if activation is None else {"activation_fn": activation}), **options)
    made.save_pretrained(str(folder))
    return str(folder)


def scores(folder: str, pairs=PAIRS) -> np.ndarray:
    found = classify(pairs, folder, top=None, **FP32)
    return np.array([[one["score"] for one in sorted(labels, key=lambda one: one["label"])] for labels in found])


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("kind", [None, torch.nn.Identity, torch.nn.Sigmoid, torch.nn.Tanh])
@pytest.mark.parametrize("layout", ["new", "5", "3"])
def test_scores_of_a_cross_encoder(tmp_path, labels, kind, layout):
    folder = cross_encoder(tmp_path / "a", labels, None if kind is None else kind())
    folder_a = tmp_path / "a"
    if layout != "new":  # where versions before 5.4 and before 4 write it
        name = json.loads((folder_a / "config_sentence_transformers.json").read_text())["activation_fn"]
        for file in ("config_sentence_transformers.json", "modules.json", "sentence_bert_config.json"):
            (folder_a / file).unlink()
        old = {"sbert_ce_default_activation_function": name}
        edit(
            folder_a / "config.json",
            **({"sentence_transformers": {"activation_fn": name, "version": "5"}} if layout == "5" else old),
        )
    expected = CrossEncoder(folder, device="cpu").predict(PAIRS).reshape(len(PAIRS), labels)
    np.testing.assert_allclose(scores(folder), expected, rtol=0, atol=1e-5)


def test_settings_of_a_cross_encoders_texts(tmp_path):
    pairs = [*PAIRS, ("the cat " * 20, "a dog " * 20)]
    options = {"prompts": {"ask": "please "}, "default_prompt_name": "ask", "max_length": 24}
    folder = cross_encoder(tmp_path / "a", 1, torch.nn.Identity(), **options)
    expected = CrossEncoder(folder, device="cpu").predict(pairs)
    with pytest.warns(UserWarning, match="texts cut at 24 tokens: 1"):
        found = scores(folder, pairs)[:, 0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    plain = scores(folder + "-base", PAIRS)[:, 0]
    assert np.abs(found[: len(PAIRS)] - plain).max() > 1e-2


def test_the_command_says_how_it_scores(app, tmp_path):
    folder = cross_encoder(tmp_path / "a", 1, torch.nn.Identity())
    done = runner.invoke(app, ["classify", "--model", folder, "--pairs", "--precision", "float32", *PAIRS[0]])
    assert done.exit_code == 0, done.output
    assert f"{folder}: a CrossEncoder, its scores by Identity of the logits" in done.stderr
    (label,) = json.loads(done.stdout)["labels"]
    assert label["score"] == pytest.approx(CrossEncoder(folder, device="cpu").predict(PAIRS[:1])[0], abs=1e-5)


def test_a_cross_encoder_that_cannot_be_followed_is_refused(checkpoints, tmp_path):
    folder = cross_encoder(tmp_path / "a", 1)
    with pytest.raises(InputError, match=r"expected a SentenceTransformer .* got a CrossEncoder: classify scores its pairs"):
        embed("the cat", folder)
    vectors = build(checkpoints["BertModel"], tmp_path / "b")
    with pytest.raises(InputError, match=r"expected a CrossEncoder .* got a SentenceTransformer: embed makes its vectors"):
        classify(PAIRS, vectors)
    settings = tmp_path / "a" / "config_sentence_transformers.json"
    for values, message in (
        ({"activation_fn": "my.Own"}, r"expected an activation of torch\.nn without options in .*, got 'my\.Own'"),
        ({"keep_in_fp32_modules": ["0.model.classifier"]}, "expected keep_in_fp32_modules to be None"),
    ):
        before = settings.read_text()
        edit(settings, **values)
        with pytest.raises(InputError, match=message):
            classify(PAIRS, folder)
        settings.write_text(before)
    old = save(tmp_path / "c", "BertForSequenceClassification", num_labels=1)
    edit(tmp_path / "c" / "config.json", sentence_transformers={"activation_fn": "torch.nn.Identity", "temperature": 2})
    with pytest.raises(
        InputError, match=r"expected settings that fastbert knows in config\.json .*, got sentence_transformers\.t"
    ):
        classify(PAIRS, old)


@pytest.mark.parametrize(
    "said",
    [
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
    ],
)
def test_a_new_head_does_not_score_as_the_old_one_did(tmp_path, said):
    from fastbert.finetuning.model import load_model
    from fastbert.utils.checkpoints import open_checkpoint

    folder = save(tmp_path / "a", "BertForSequenceClassification", num_labels=1)
    edit(tmp_path / "a" / "config.json", **said)
    model, _ = load_model(open_checkpoint(folder), "BertForSequenceClassification", {"num_labels": 3})
    model.save_pretrained(tmp_path / "b")
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "b")
    assert scores(str(tmp_path / "b")).sum(1) == pytest.approx(1)
    assert scores(folder).max() > 1
