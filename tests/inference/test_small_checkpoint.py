"""The checkpoint in the package is what its card says: small, whole, and trained."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers

import fastbert
from fastbert.data.masking import Masker
from fastbert.data.prepare import prepare
from fastbert.data.shards import Shards
from fastbert.pretraining.evaluation import held_out_batches, metrics_of, sums_of
from fastbert.utils.checkpoints import small_checkpoint
from fastbert.utils.sample_text import MASKED, SENTENCES

HELD_OUT = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "pretrain" / "en_books_heldout.txt"
FOLDER = Path(small_checkpoint())


@pytest.fixture(scope="module")
def training() -> dict:
    return json.loads((FOLDER / "training.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model() -> fastbert.BertForPreTraining:
    return fastbert.BertForPreTraining.from_pretrained(FOLDER, dtype=torch.float32).eval()


def test_it_is_small_and_whole_in_transformers():
    assert (FOLDER / "model.safetensors").stat().st_size <= 12e6
    model, info = transformers.BertForPreTraining.from_pretrained(FOLDER, output_loading_info=True)
    assert not any(info.values()), info
    assert model.dtype == torch.float32  # the file holds float16, to be small, which is slow to compute in on a CPU
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    assert len(tokenizer) == model.config.vocab_size


def test_it_knows_more_than_frequencies(model, training):
    """On the built-in sentences, which it never saw: every sixth token masked."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    losses = []
    for first in range(1, 7):
        batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
        real = batch["attention_mask"].bool() & (batch["input_ids"] != tokenizer.sep_token_id)
        chosen = real & (torch.arange(real.shape[1]) % 6 == first % 6)
        chosen[:, 0] = False
        labels = batch["input_ids"][chosen]
        masked = batch["input_ids"].masked_fill(chosen, tokenizer.mask_token_id)
        with torch.no_grad():
            logits = model(**{**batch, "input_ids": masked}).prediction_logits[chosen]
        losses.append(F.cross_entropy(logits, labels, reduction="none"))
    assert torch.cat(losses).mean() < training["unigram entropy of the training text"]


def test_masked_words_of_the_demonstration():
    found = fastbert.fill_mask(list(MASKED), top=5)
    assert all(len(masks) == 1 and len(masks[0]) == 5 for masks in found)
    assert all(masks[0][0]["score"] > 0.02 for masks in found)  # one in 8192 would be 0.0001
    words = [{fill["token_str"] for fill in masks[0]} for masks in found]
    assert words[0] & {"door", "window"}
    assert "children" in words[1]
    assert "head" in words[2]


@pytest.mark.skipif(not HELD_OUT.is_file(), reason=f"no held-out text at {HELD_OUT}")
def test_held_out_numbers_are_those_of_the_card(model, training, tmp_path):
    prepare([str(HELD_OUT)], FOLDER, tmp_path / "data", seq_len=128, workers=1)
    shards, masker = Shards(tmp_path / "data"), Masker.of(transformers.AutoTokenizer.from_pretrained(FOLDER))
    sums = sum(sums_of(model, batch) for batch in held_out_batches(shards, masker, 4096, (0, 1), None))
    found, stated = metrics_of(sums), training["held out"]
    assert found["eval_mlm_loss"] == pytest.approx(stated["mlm_loss"], rel=0.01)
    assert found["eval_next_sentence_accuracy"] == pytest.approx(stated["next_sentence_accuracy"], abs=0.01)
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"{stated['mlm_loss']:.2f}" in card
    assert f"{stated['next_sentence_accuracy']:.1%}" in card
