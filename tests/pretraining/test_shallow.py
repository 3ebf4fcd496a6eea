"""Shallowly bidirectional models: each half sees its side alone, loads in transformers, and the pair is fine-tuned."""

import json
import math

import pytest
import torch
import transformers

from fastbert.finetuning.model import load_model
from fastbert.kernels.limits import IGNORE_INDEX
from fastbert.model.variants.left_to_right import head_class
from fastbert.model.variants.shallow import HALVES, ShallowBertModel, half_config, load_encoder, reverse
from fastbert.pretraining import black_box
from fastbert.pretraining.evaluation import metrics_of, sums_of
from fastbert.pretraining.objectives import Objective
from fastbert.pretraining.run import run
from fastbert.pretraining.trainer import PreTrainer
from fastbert.utils.checkpoints import open_checkpoint
from fastbert.utils.errors import InputError
from tests.pretraining.small_data import TINY
from tests.pretraining.small_runs import Killed, assert_same, end_at, kill, options
from tests.pretraining.test_objectives import batch_of, padded, unmask

SHALLOW = Objective("shallow", next_sentence=False)


def config_of(**values) -> transformers.BertConfig:
    config = transformers.BertConfig(**{**TINY, "vocab_size": 64, "initializer_range": 0.3, **values})
    SHALLOW.prepare(config)
    return config


def model_of():
    torch.manual_seed(0)
    return SHALLOW.model(config_of()).eval()


def test_every_sequence_is_reversed_in_its_place():
    back = reverse(torch.tensor([0, 3, 4, 6], dtype=torch.int32), 6)
    assert back.tolist() == [2, 1, 0, 3, 5, 4]
    assert back[back].tolist() == list(range(6))


def test_the_losses_are_those_of_transformers_on_the_padded_batch_and_its_mirror(prepared, tmp_path):
    tested, batch = model_of(), batch_of(prepared, SHALLOW)
    tested.save_pretrained(tmp_path)
    sequences = batch["input_ids"].split(batch["cu_seqlens"].diff().tolist())
    types = batch["token_type_ids"].split(batch["cu_seqlens"].diff().tolist())
    expected = []
    for name in HALVES:
        reference, found = transformers.BertLMHeadModel.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not found["missing_keys"]
        assert not found["unexpected_keys"]
        assert reference.config.hidden_size == TINY["hidden_size"] // 2
        if name == "right":
            flipped = {"input_ids": torch.cat([one.flip(0) for one in sequences])}
            flipped["token_type_ids"] = torch.cat([one.flip(0) for one in types])
            inputs = padded({**flipped, "cu_seqlens": batch["cu_seqlens"]}, "input_ids", "token_type_ids")
        else:
            inputs = padded(batch, "input_ids", "token_type_ids")
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORE_INDEX)
        expected.append(reference.eval()(**inputs, labels=labels).loss.item())
    count = int((batch["labels"] != IGNORE_INDEX).sum())
    output = tested(**batch, num_items_in_batch=count, num_pairs_in_batch=6)
    assert output.loss.item() == pytest.approx(sum(expected), rel=1e-5)
    metrics = SHALLOW.named(metrics_of(sums_of(tested, batch), ""))
    assert metrics["loss"] == pytest.approx(sum(expected), rel=1e-5)
    assert metrics["lm_loss"] == pytest.approx(sum(expected) / 2, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(sum(expected) / 2), rel=1e-4)
    unmask(tested.right)
    assert abs(tested(**batch).loss.item() - sum(expected)) > 1e-3


def test_each_half_sees_its_side_alone():
    torch.manual_seed(0)
    model = ShallowBertModel(config_of())
    for part in model.modules():
        if isinstance(part, torch.nn.Linear):
            torch.nn.init.normal_(part.weight, std=0.3)
    model.eval()
    bounds = {"cu_seqlens": torch.tensor([0, 7, 12], dtype=torch.int32), "max_seqlen": 7}
    ids = torch.arange(12) + 5
    changed, place, half = ids.clone(), 3, TINY["hidden_size"] // 2
    changed[place] = 40

    def moved() -> tuple[list[int], list[int]]:
        """Tokens whose left and right states change with one token."""
        a, b = (model(one, **bounds).last_hidden_state for one in (ids, changed))
        difference = (a - b).abs()
        return tuple(part.amax(1).nonzero().flatten().tolist() for part in difference.split(half, 1))

    assert moved() == ([3, 4, 5, 6], [0, 1, 2, 3])
    for name in HALVES:
        encoder = getattr(model, name)
        encoder.config.is_decoder = False
        for layer in encoder.encoder.layer:
            layer.attention.self.is_causal = False
    assert moved() == ([0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6])


def test_a_killed_run_is_resumed_to_the_same_end_and_is_fine_tuned(prepared, console, monkeypatch, tmp_path):
    def options_of(name: str):
        return options(
            prepared, tmp_path / name, steps=(6,), save_every=3, evaluate_every=6, direction="shallow", next_sentence=False
        )

    whole, killed = options_of("whole"), options_of("killed")
    assert run(whole, console, resume=False) == 0
    with monkeypatch.context() as patched:
        end_at("step", 9, kill, patched.setattr)
        with pytest.raises(Killed):
            run(killed, console, resume=False)
    assert run(killed, console, resume=True) == 0
    assert_same(*(ending(one.out / "checkpoint-6") for one in (killed, whole)))
    last = whole.out / "checkpoint-6"
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    assert history[0]["loss"] == pytest.approx(2 * history[0]["lm_loss"], rel=1e-4)
    assert not [name for entry in history for name in entry if "next_sentence" in name or name == "mfu"]
    words = [transformers.BertLMHeadModel.from_pretrained(last / name).get_input_embeddings().weight for name in HALVES]
    assert torch.equal(*words)

    checkpoint = open_checkpoint(str(last))
    assert checkpoint.tokenizer is not None
    heads = {
        "BertForSequenceClassification": [
            "bert.pooler.dense.bias",
            "bert.pooler.dense.weight",
            "classifier.bias",
            "classifier.weight",
        ],
        "BertForTokenClassification": ["classifier.bias", "classifier.weight"],
        "BertForMultipleChoice": ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"],
        "BertForQuestionAnswering": ["qa_outputs.bias", "qa_outputs.weight"],
    }
    inputs = {"cu_seqlens": torch.tensor([0, 4, 7], dtype=torch.int32), "max_seqlen": 4}
    ids = torch.tensor([2, 9, 10, 3, 2, 11, 3])
    for head, new in heads.items():
        model, found = load_model(checkpoint, head, {"num_labels": 2})
        assert found == new
        assert torch.equal(model.bert.right.embeddings.word_embeddings.weight, words[0])
        more = {"num_choices": 2} if "Choice" in head else {}
        first = model.eval()(input_ids=ids, **inputs, **more)
        model.save_pretrained(tmp_path / head)
        again = head_class(head, model.config).from_pretrained(tmp_path / head).eval()
        shared = again.bert.left.embeddings.word_embeddings.weight, again.bert.right.embeddings.word_embeddings.weight
        assert shared[0] is shared[1]
        name = "logits" if "logits" in first else "start_logits"
        assert all(torch.equal(loaded, saved) for loaded, saved in zip(again.parameters(), model.parameters(), strict=True))
        # Elsewhere in memory some BLAS sum in another order.
        torch.testing.assert_close(again(input_ids=ids, **inputs, **more)[name], first[name], rtol=1e-6, atol=1e-6)
        with pytest.raises(ValueError, match="of a packed batch, got"):
            model(input_ids=ids[None], attention_mask=torch.ones(1, 7), **more)

    (last / "right" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"expected model\.safetensors in .*right, got none"):
        load_model(checkpoint, "BertForTokenClassification", {"num_labels": 2})


def ending(folder):
    from safetensors.torch import load_file

    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    names = ("loss", "lm_loss", "grad_norm", "learning_rate", "step")
    kept = [{key: value for key, value in one.items() if key in names or key.startswith("eval_")} for one in history]
    weights = {
        f"{name}.{key}": value for name in HALVES for key, value in load_file(folder / name / "model.safetensors").items()
    }
    return kept, weights


def test_a_step_that_stopped_can_be_replayed(prepared, console, monkeypatch, tmp_path):
    original = PreTrainer.compute_loss

    def planted(self, model, *args, **kwargs):
        if self.state.global_step == 1:
            with torch.no_grad():
                model.get_submodule("right.bert.encoder.layer.1.output.dense").weight[3, 5] = math.inf
        return original(self, model, *args, **kwargs)

    monkeypatch.setattr(PreTrainer, "compute_loss", planted)
    chosen = options(prepared, tmp_path, direction="shallow", next_sentence=False, held_out=None)
    assert run(chosen, console, resume=False) == 3
    found = black_box.repeat_step(tmp_path / "stopped-at-step-2-process-0" / black_box.FILE, modules=True)
    assert black_box.first_non_finite(found).part == "right.bert.encoder.layer.1.output.dense"


def test_what_does_not_fit_is_refused(prepared, console, tmp_path):
    with pytest.raises(InputError, match="expected --no-next-sentence beside direction shallow"):
        run(options(prepared, tmp_path / "out", direction="shallow"), console, resume=False)
    with pytest.raises(InputError, match="expected an even num_attention_heads for two stacks of half of it, got 3"):
        half_config(config_of(hidden_size=48, num_attention_heads=3))
    model_of().save_pretrained(tmp_path)
    encoder = ShallowBertModel(config_of(num_hidden_layers=1)).left
    with pytest.raises(InputError, match="expected the weights of half a shallow model in"):
        load_encoder(encoder, tmp_path / "left")
    assert not (tmp_path / "out").exists()
