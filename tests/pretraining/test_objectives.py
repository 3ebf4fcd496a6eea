"""Left-to-right pre-training and pre-training without sentence pairs: losses are transformers', no token sees a later one."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers

import fastbert
from fastbert.data.batches import collate
from fastbert.kernels.limits import IGNORE_INDEX
from fastbert.pretraining import black_box
from fastbert.pretraining.evaluation import metrics_of, sums_of
from fastbert.pretraining.objectives import NextTokens, Objective
from fastbert.pretraining.run import run
from fastbert.pretraining.trainer import PreTrainer
from fastbert.training import checkpoints
from fastbert.utils.errors import InputError
from tests.pretraining.small_data import TINY
from tests.pretraining.small_runs import Killed, assert_same, end_at, kill, options, outcome

LEFT, NO_PAIRS = Objective("left", next_sentence=False), Objective("both", next_sentence=False)


def model_of(objective: Objective):
    config = transformers.BertConfig(**TINY, vocab_size=64, initializer_range=0.3)
    objective.prepare(config)
    torch.manual_seed(0)
    return objective.model(config).eval()


def batch_of(prepared, objective: Objective, count: int = 6):
    tokenizer = transformers.AutoTokenizer.from_pretrained(prepared.data / "tokenizer")
    return collate(prepared.shards, objective.masker(tokenizer), range(count), epoch=0)


def padded(batch, *names: str) -> dict[str, torch.Tensor]:
    lengths = batch["cu_seqlens"].diff().tolist()
    pads = {"labels": IGNORE_INDEX}
    found = {
        name: torch.nn.utils.rnn.pad_sequence(batch[name].split(lengths), batch_first=True, padding_value=pads.get(name, 0))
        for name in names
    }
    return found | {"attention_mask": (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()}


def test_the_loss_of_left_is_that_of_transformers_on_the_padded_batch(prepared, tmp_path):
    """Saved and read by transformers, which masks and shifts by itself."""
    tested, batch = model_of(LEFT), batch_of(prepared, LEFT)
    tested.save_pretrained(tmp_path)
    reference, found = transformers.BertLMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert reference.config.architectures == ["BertLMHeadModel"]
    assert reference.config.is_decoder
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    inputs = padded(batch, "input_ids", "token_type_ids")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORE_INDEX)
    expected = reference.eval()(**inputs, labels=labels).loss.item()
    count = int((batch["labels"] != IGNORE_INDEX).sum())
    assert count == len(batch["input_ids"]) - 6
    assert tested(**batch, num_items_in_batch=count, num_pairs_in_batch=6).loss.item() == pytest.approx(expected, rel=1e-5)
    metrics = LEFT.named(metrics_of(sums_of(tested, batch), ""))
    assert metrics["loss"] == metrics["lm_loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    assert set(metrics) == {"loss", "lm_loss", "lm_accuracy", "perplexity"}

    # Without the mask the loss is another: what the equality above rests on.
    unmask(tested)
    assert abs(tested(**batch).loss.item() - expected) > 1e-3


def unmask(model) -> None:
    model.config.is_decoder = False
    for layer in model.bert.encoder.layer:
        layer.attention.self.is_causal = False


def test_no_token_sees_a_later_one(prepared):
    model, batch = model_of(LEFT), batch_of(prepared, LEFT, count=1)
    bounds = {name: batch[name] for name in ("cu_seqlens", "max_seqlen")}
    ids, place = batch["input_ids"], len(batch["input_ids"]) // 2
    changed = torch.cat([ids[:place], 5 + (ids[place:] + 7) % 59])

    def difference() -> tuple[float, float]:
        a, b = (model.cls(model.bert(one, **bounds).last_hidden_state) for one in (ids, changed))
        return (a - b)[:place].abs().max().item(), (a - b)[place:].abs().max().item()

    before, after = difference()
    assert before == 0.0
    assert after > 0.1
    unmask(model)
    assert difference()[0] > 1e-2


def test_labels_are_the_next_tokens_and_nothing_crosses_samples(prepared):
    batch = batch_of(prepared, LEFT)
    for a, b in zip(batch["cu_seqlens"][:-1].tolist(), batch["cu_seqlens"][1:].tolist()):
        assert batch["labels"][a : b - 1].tolist() == batch["input_ids"][a + 1 : b].tolist()
        assert batch["labels"][b - 1] == IGNORE_INDEX
    assert np.array_equal(batch["input_ids"][: len(prepared.shards[0].input_ids)], prepared.shards[0].input_ids)


def test_masked_tokens_alone_have_the_loss_of_transformers(prepared, tmp_path):
    tested, batch = model_of(NO_PAIRS), batch_of(prepared, NO_PAIRS)
    tested.save_pretrained(tmp_path)
    reference, found = transformers.BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    expected = reference.eval()(**padded(batch, "input_ids", "token_type_ids", "labels")).loss.item()
    assert tested(**batch).loss.item() == pytest.approx(expected, rel=1e-5)
    assert tested(**batch).next_sentence_loss is None


def test_the_next_sentence_is_predicted_from_the_last_token(prepared):
    """The first has seen nothing else: changing the rest of the text changes nothing there."""
    model = model_of(Objective("left"))
    batch = batch_of(prepared, Objective("left"))
    output = model(**batch)
    assert output.loss.item() == pytest.approx(output.mlm_loss.item() + output.next_sentence_loss.item())
    inputs = {name: batch[name] for name in ("input_ids", "token_type_ids", "cu_seqlens", "max_seqlen")}
    outputs = model.bert(**inputs)
    last = outputs.last_hidden_state[batch["cu_seqlens"][1:].long() - 1]
    torch.testing.assert_close(outputs.pooler_output, model.bert.last_token_pooler(last[:, None]))
    scores = model.cls.seq_relationship(outputs.pooler_output)
    expected = torch.nn.functional.cross_entropy(scores, batch["next_sentence_label"])
    assert output.next_sentence_loss.item() == pytest.approx(expected.item(), rel=1e-6)
    inputs = padded(batch, "input_ids", "token_type_ids")
    torch.testing.assert_close(model.bert(**inputs).pooler_output, outputs.pooler_output, rtol=1e-5, atol=1e-5)


def test_a_killed_and_resumed_left_run_is_the_uninterrupted_one(prepared, console, monkeypatch, tmp_path):
    whole = options(prepared, tmp_path / "whole", direction="left")
    assert run(whole, console, resume=False) == 0
    killed = replace(whole, out=tmp_path / "killed")
    with monkeypatch.context() as patched:
        end_at("step", 17, kill, patched.setattr)
        with pytest.raises(Killed):
            run(killed, console, resume=False)
    assert run(killed, console, resume=True) == 0
    assert_same(outcome(killed.out), outcome(whole.out))
    assert "predicts the next token from those before it, and the next sentence" in console.file.getvalue()
    losses = [entry["eval_lm_loss"] for entry in outcome(whole.out)[0] if "eval_lm_loss" in entry]
    assert losses[-1] < losses[0] < math.log(64) + 0.3
    with pytest.raises(InputError, match=r"expected direction 'left', with which .* was started, got 'both'"):
        run(replace(killed, direction="both"), console, resume=True)

    loaded, found = transformers.BertLMHeadModel.from_pretrained(whole.out / "checkpoint-12", output_loading_info=True)
    assert not found["missing_keys"]
    fast = fastbert.BertLMHeadModel.from_pretrained(whole.out / "checkpoint-12")
    prompt = {"input_ids": torch.tensor([[2, 9, 10], [2, 40, 41]]), "attention_mask": torch.ones(2, 3, dtype=torch.long)}
    for sampled in (False, True):
        generated = []
        for model in (loaded.eval(), fast.eval()):
            torch.manual_seed(0)
            generated.append(model.generate(**prompt, max_new_tokens=9, do_sample=sampled, eos_token_id=None))
        assert torch.equal(generated[0], generated[1])
        assert generated[0].shape == (2, 12)


def test_a_run_without_pairs_logs_none(prepared, console, tmp_path):
    assert run(options(prepared, tmp_path, steps=(4,), evaluate_every=4, next_sentence=False), console, resume=False) == 0
    _, found = transformers.BertForMaskedLM.from_pretrained(tmp_path / "checkpoint-4", output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    history = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    names = {name for entry in history for name in entry}
    assert {"mlm_loss", "eval_mlm_accuracy", "eval_perplexity"} <= names
    assert not [name for name in names if "next_sentence" in name]
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_left_step_can_be_replayed(prepared, console, monkeypatch, tmp_path):
    original = PreTrainer.compute_loss

    def planted(self, model, *args, **kwargs):
        if self.state.global_step == 2:
            with torch.no_grad():
                model.get_submodule("bert.encoder.layer.1.output.dense").weight[3, 5] = math.inf
        return original(self, model, *args, **kwargs)

    monkeypatch.setattr(PreTrainer, "compute_loss", planted)
    assert run(options(prepared, tmp_path, direction="left", held_out=None), console, resume=False) == 3
    found = black_box.repeat_step(tmp_path / "stopped-at-step-3-process-0" / black_box.FILE, modules=True)
    assert black_box.first_non_finite(found).part == "bert.encoder.layer.1.output.dense"
    assert not checkpoints.all_of(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(direction="right"), "expected a direction among both, left"),
        (dict(direction="left", whole_words=True), "expected no whole_words beside direction left"),
        (dict(direction="left", max_predictions=3), "expected no max_predictions beside direction left"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_written(prepared, console, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(options(prepared, tmp_path / "out", **changes), console, resume=False)
    assert not (tmp_path / "out").exists()


def test_next_tokens_need_no_draws(prepared):
    sample = prepared.shards[0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(prepared.data / "tokenizer")
    masker = NextTokens.of(tokenizer, seed=3)
    assert [part.tolist() for part in masker(sample, 0, 0)] == [part.tolist() for part in masker(sample, 5, 9)]
