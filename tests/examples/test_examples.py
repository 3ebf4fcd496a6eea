"""Every example runs as it stands, on tiny data, stays short, and does what its page says."""

import json
import re

import numpy as np
import pytest
import torch
import transformers

import fastbert
from tests.data.small_text import make_text
from tests.examples.conftest import EXAMPLES, example

LINES = {"serve": 120}


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.stem)
def test_an_example_is_short_and_listed(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LINES.get(file.stem, 60)
    assert f"[{file.name}]({file.name})" in (EXAMPLES / "README.md").read_text(encoding="utf-8")


def test_trainer(tmp_path, capsys):
    pytest.importorskip("accelerate", reason="accelerate is not installed, which transformers' Trainer needs")
    pytest.importorskip("datasets", reason="datasets is not installed")
    example("trainer").main(out=tmp_path / "model", epochs=8)
    assert "100% of the training sentences are right" in capsys.readouterr().out
    found = fastbert.classify(["a warm and happy night", "a sad and bitter man"], tmp_path / "model")
    assert {labels[0]["label"] for labels in found} <= {"good", "bad"}
    saved = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert saved.config.id2label == {0: "bad", 1: "good"}


def test_lora(tmp_path, capsys):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    module = example("lora")
    module.main(out=tmp_path / "adapter", steps=10)
    printed = capsys.readouterr().out
    first, last = map(float, re.findall(r"loss ([\d.]+)", printed))
    assert last < first
    base = transformers.AutoModelForSequenceClassification.from_pretrained(module.small_checkpoint(), num_labels=2)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")  # in transformers alone
    names = [name for name, value in loaded.named_parameters() if "lora_B" in name and value.abs().sum() > 0]
    assert len(names) == 2 * base.config.num_hidden_layers


def test_sentence_vectors(tmp_path, capsys):
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    pytest.importorskip("datasets", reason="datasets is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    example("sentence_vectors").main(out=tmp_path / "encoder", epochs=2)
    before, after = map(float, re.findall(r"(?:before|after): (-?[\d.]+)", capsys.readouterr().out))
    assert after > before
    texts = ["Rain again.", "Our cat is afraid of the vacuum cleaner."]
    theirs = library.SentenceTransformer(str(tmp_path / "encoder"), device="cpu").encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(fastbert.embed(texts, tmp_path / "encoder", normalize=True), theirs, atol=1e-5)


def test_pretraining(tmp_path, capsys):
    for name in ("accelerate", "tensorboard", "matplotlib"):
        pytest.importorskip(name, reason=f"{name} is not installed, which pre-training needs")
    text = tmp_path / "text.txt"
    text.write_text(make_text(12))
    example("pretraining").main(text=text, out=tmp_path / "out", vocab_size=300, seq_len=32, steps=4, step_tokens=256)
    assert "out/run/checkpoint-4; try: fastbert fill-mask" in capsys.readouterr().out
    config = json.loads((tmp_path / "out" / "run" / "checkpoint-4" / "config.json").read_text())
    assert config["num_hidden_layers"] == 2
    assert fastbert.fill_mask("a [MASK] word", tmp_path / "out" / "run" / "checkpoint-4", top=1)


def test_own_model(capsys):
    example("own_model").main(steps=12)
    losses = [float(found) for found in re.findall(r": ([\d.]+) nats", capsys.readouterr().out)]
    assert losses[-1] < losses[0]


def test_the_own_model_keeps_its_sentences_apart():
    module = example("own_model")
    torch.manual_seed(0)
    model, ids = module.Model(), torch.tensor([*b"one", *b"another"])
    labels = torch.tensor([-100, 110, -100, *[-100] * 7])  # in the first sentence alone
    changed = torch.tensor([*b"one", *b"reverse"])
    torch.testing.assert_close(model(ids, labels, [3, 7]), model(changed, labels, [3, 7]))
