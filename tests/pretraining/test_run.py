"""Whole runs: resumed equals uninterrupted bit for bit, accumulation is exact, bad checkpoints and options are refused."""

import io
import json
import math
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from rich.console import Console

import fastbert
from fastbert.data.batches import MicroBatches, Phase, Plan
from fastbert.data.masking import Masker
from fastbert.pretraining import black_box
from fastbert.pretraining.configuration import model_config
from fastbert.pretraining.options import Options
from fastbert.pretraining.run import run
from fastbert.pretraining.trainer import PreTrainer
from fastbert.training import checkpoints
from fastbert.utils.errors import DataError, InputError
from tests.pretraining.small_data import write_data
from tests.pretraining.small_runs import RECIPE, Killed, assert_same, end_at, kill, options, outcome, without_dropout


@pytest.fixture(scope="module")
def uninterrupted(prepared, tmp_path_factory):
    from rich.console import Console

    out = tmp_path_factory.mktemp("uninterrupted")
    assert run(options(prepared, out), Console(quiet=True), resume=False) == 0
    return outcome(out)


def check_killed(prepared, uninterrupted, console, monkeypatch, out: Path, place: str, count: int) -> bool:
    with monkeypatch.context() as patched:
        end_at(place, count, kill, patched.setattr)
        try:
            run(options(prepared, out), console, resume=False)
            return False
        except Killed:
            pass
    assert run(options(prepared, out), console, resume=True) == 0
    assert_same(outcome(out), uninterrupted)
    return True


@pytest.mark.parametrize(("place", "count"), [("step", 17), ("save", 15), ("evaluate", 14), ("clip", 6), ("rename", 2)])
def test_a_run_killed_and_resumed_is_the_uninterrupted_one(
    prepared, uninterrupted, console, monkeypatch, tmp_path, place, count
):
    assert check_killed(prepared, uninterrupted, console, monkeypatch, tmp_path, place, count)


@pytest.mark.skipif("FASTBERT_SLOW" not in os.environ, reason="twenty kill points; five run always (FASTBERT_SLOW=1 for all)")
def test_twenty_random_kill_points(prepared, uninterrupted, console, monkeypatch, tmp_path):
    rng, killed = random.Random(0), 0
    while killed < 20:
        place = rng.choice(("step", "clip", "save", "evaluate"))
        count = rng.randint(1, 24)
        killed += check_killed(
            prepared, uninterrupted, console, monkeypatch, tmp_path / f"{killed}-{place}-{count}", place, count
        )


def test_accumulated_steps_equal_whole_ones(prepared, console, tmp_path):
    still = str(without_dropout(prepared, tmp_path))
    for name, tokens in (("whole", 512), ("split", 128)):
        chosen = options(prepared, tmp_path / name, config=still, micro_batch_tokens=tokens, held_out=None)
        assert run(chosen, console, resume=False) == 0
    (whole, weights), (split, same) = outcome(tmp_path / "whole"), outcome(tmp_path / "split")
    for a, b in zip(whole, split):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
    for name in weights:
        torch.testing.assert_close(same[name], weights[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("values", "mentioned"), [({"vocab_size": 100}, True), ({"vocab_size": 64}, False), ({}, False)])
def test_a_vocabulary_of_another_size_is_mentioned(prepared, tmp_path, values, mentioned):
    shown = Console(file=io.StringIO(), width=200)
    config = json.loads(without_dropout(prepared, tmp_path).read_text())
    config.pop("vocab_size", None)
    (tmp_path / "named.json").write_text(json.dumps(config | values))
    chosen = options(prepared, tmp_path / "out", config=str(tmp_path / "named.json"), steps=(1,), held_out=None)
    assert run(chosen, shown, resume=False) == 0
    assert ("vocab_size 64, that of the tokenizer, not 100 of" in shown.file.getvalue()) is mentioned
    assert transformers.BertForPreTraining.from_pretrained(tmp_path / "out" / "checkpoint-1").config.vocab_size == 64


def test_training_is_that_of_transformers_step_by_step(prepared, console, tmp_path):
    """32 steps on the same batches, padded for transformers: losses to 1e-5, weights to 1e-4, relative."""
    steps, still = 32, without_dropout(prepared, tmp_path)
    chosen = options(prepared, tmp_path / "tested", config=str(still), steps=(steps,), held_out=None, micro_batch_tokens=512)
    assert run(chosen, console, resume=False) == 0
    tested, weights = outcome(tmp_path / "tested", steps)

    transformers.set_seed(chosen.seed)
    shards = prepared.shards
    tokenizer = transformers.AutoTokenizer.from_pretrained(prepared.data / "tokenizer")
    config = model_config(str(still), len(tokenizer), shards.meta.seq_len)
    reference = transformers.BertForPreTraining(config)
    reference.load_state_dict(_first_weights(chosen, config))
    phase = Phase(shards, Masker.of(tokenizer, seed=chosen.seed), Plan(shards.lengths, chosen.batch_tokens, chosen.seed), steps)
    decay = [p for n, p in reference.named_parameters() if not (n.endswith("bias") or "LayerNorm" in n)]
    rest = [p for n, p in reference.named_parameters() if n.endswith("bias") or "LayerNorm" in n]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}],
        lr=RECIPE.learning_rate,
        betas=RECIPE.betas,
        eps=RECIPE.eps,
    )
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, math.ceil(0.1 * steps), steps)
    reference.train()
    for entry, batch in zip(tested, MicroBatches([phase])):
        loss = reference(**_padded(batch)).loss
        assert entry["loss"] == pytest.approx(loss.item(), rel=1e-5)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), RECIPE.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    for name, value in reference.state_dict().items():
        if name.endswith("key.bias"):  # its true gradient is zero: rounding alone moves it
            assert max(weights[name].abs().max(), value.abs().max()) < 1e-6
        elif name in weights:
            assert (weights[name] - value).norm() <= 1e-4 * value.norm(), name


def _first_weights(chosen: Options, config) -> dict[str, torch.Tensor]:
    transformers.set_seed(chosen.seed)
    return fastbert.BertForPreTraining(config).state_dict()


def _padded(batch) -> dict[str, torch.Tensor]:
    bounds = batch["cu_seqlens"].tolist()
    pad = {"input_ids": 0, "token_type_ids": 0, "labels": -100}
    out = {
        name: torch.nn.utils.rnn.pad_sequence([batch[name][a:b] for a, b in zip(bounds, bounds[1:])], True, value)
        for name, value in pad.items()
    }
    lengths = batch["cu_seqlens"].diff()
    out["attention_mask"] = (torch.arange(out["input_ids"].shape[1]) < lengths[:, None]).long()
    return out | {"next_sentence_label": batch["next_sentence_label"]}


def test_every_checkpoint_is_a_folder_of_transformers(drawn_pictures, prepared, console, tmp_path):
    assert run(options(prepared, tmp_path), console, resume=False) == 0
    for folder in checkpoints.all_of(tmp_path):
        model, info = transformers.BertForPreTraining.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert transformers.AutoTokenizer.from_pretrained(folder).mask_token_id == 4
        assert model.config.vocab_size == 64
    assert (tmp_path / "loss.png").stat().st_size > 10_000
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_taken(prepared, uninterrupted, console, tmp_path):
    short = options(prepared, tmp_path)
    assert run(short, console, resume=False) == 0
    weights = tmp_path / "checkpoint-12" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    (tmp_path / "checkpoint-8" / "optimizer.pt").unlink()
    good, refused = checkpoints.last_good(tmp_path)
    assert good == tmp_path / "checkpoint-4"
    late, middle = refused.values()
    assert "checkpoint-12: expected other bytes in model.safetensors" in late
    assert "checkpoint-8: expected the file optimizer.pt, got none" in middle
    assert run(replace(short, keep=1), console, resume=True) == 0
    assert "refused checkpoint-12" in console.file.getvalue()
    assert sorted(path.name for path in tmp_path.glob("*checkpoint*")) == [
        "checkpoint-12",
        "refused-checkpoint-12",
        "refused-checkpoint-8",
    ]
    assert_same(outcome(tmp_path), uninterrupted)


def test_a_non_finite_step_stops_the_run_and_can_be_replayed(prepared, console, monkeypatch, tmp_path):
    original, visits, part = PreTrainer.compute_loss, [], "bert.encoder.layer.1.output.dense"

    def planted(self, model, *args, **kwargs):
        visits.append(1)
        if len(visits) == 11:  # the first micro-batch of step 6
            with torch.no_grad():
                model.get_submodule(part).weight[3, 5] = math.inf
        return original(self, model, *args, **kwargs)

    monkeypatch.setattr(PreTrainer, "compute_loss", planted)
    assert run(options(prepared, tmp_path), console, resume=False) == 3
    assert "the gradient norm of step 6 is nan" in console.file.getvalue()
    assert checkpoints.last_good(tmp_path) == (tmp_path / "checkpoint-4", {})

    file = tmp_path / "stopped-at-step-6-process-0" / black_box.FILE
    content = json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert content["largest weight and gradient"][f"{part}.weight"][0] == "inf"
    plan = Plan(prepared.shards.lengths, 512, 0)
    samples = [number for one in content["micro-batches"] for number in one["samples"]]
    assert sorted(samples) == sorted(plan.samples(5)[1])
    assert black_box.first_non_finite(black_box.repeat_step(file, modules=False)).part == "loss"
    assert black_box.first_non_finite(black_box.repeat_step(file, modules=True))[:2] == (0, part)
    (file.parent / "weights.safetensors").unlink()
    with pytest.raises(DataError, match=r"weights\.safetensors beside"):
        black_box.repeat_step(file, modules=False)


def test_a_replayed_step_gives_the_loss_of_the_run(prepared, console, monkeypatch, tmp_path):
    """Dropout included: the black box of a good step, written on purpose, replays to the bit."""
    written, losses = [], []
    original = PreTrainer._clip_grad_norm

    def write_too(self, model):
        if self.state.global_step == 7:
            written.append(black_box.write(tmp_path / "box", self, "on purpose"))
        return original(self, model)

    loss = PreTrainer.compute_loss

    def noted(self, *args, **kwargs):
        value = loss(self, *args, **kwargs)
        if self.state.global_step == 7:
            losses.append(value.item())
        return value

    monkeypatch.setattr(PreTrainer, "_clip_grad_norm", write_too)
    monkeypatch.setattr(PreTrainer, "compute_loss", noted)
    whole = options(prepared, tmp_path / "out", micro_batch_tokens=512, held_out=None)
    assert run(whole, console, resume=False) == 0
    found = black_box.repeat_step(written[0], modules=False)
    assert found[0] == (0, "loss", pytest.approx(losses[0], rel=1e-6))


def test_a_full_disk_leaves_the_checkpoints_before(prepared, console, monkeypatch, tmp_path):
    original = checkpoints.commit

    def full(folder, out, step, facts):
        if step == 8:
            raise OSError(28, "No space left on device")
        return original(folder, out, step, facts)

    monkeypatch.setattr(checkpoints, "commit", full)
    with pytest.raises(OSError, match="No space left"):
        run(options(prepared, tmp_path), console, resume=False)
    assert checkpoints.last_good(tmp_path) == (tmp_path / "checkpoint-4", {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(batch_tokens=40), "two of the longest samples, 64, got 40"),
        (dict(batch_tokens=10**9), "as the data has"),
        (dict(config="bert-huge"), "expected one of bert-tiny, .*, bert-large or a JSON file .* got bert-huge"),
        (dict(fsdp=True), r"expected several processes \(torchrun\) to shard over with FSDP, got 1"),
        (dict(micro_batch_tokens=16), "so that none is empty, got 1 processes times 32"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(prepared, console, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(options(prepared, tmp_path / "out", **changes), console, resume=False)
    assert not (tmp_path / "out").exists()


def test_another_recipe_cannot_resume_a_run(prepared, console, tmp_path):
    assert run(options(prepared, tmp_path, held_out=None), console, resume=False) == 0
    with pytest.raises(InputError, match=r"expected batch_tokens 512, with which .* was started, got 600"):
        run(options(prepared, tmp_path, held_out=None, batch_tokens=600), console, resume=True)


def test_folders_of_different_tokenizers_are_refused(prepared, console, tmp_path):
    other = write_data(tmp_path / "other", count=20, words=30)
    with pytest.raises(DataError, match="expected one tokenizer"):
        run(options(prepared, tmp_path / "out", held_out=other), console, resume=False)


@pytest.mark.usefixtures("triton_device")
def test_a_short_run_through_the_kernels_is_that_of_pytorch(prepared, console, tmp_path):
    from fastbert.kernels import use_backend

    still, few = str(without_dropout(prepared, tmp_path)), dict(steps=(3,), save_every=3, held_out=None, batch_tokens=64)
    outcomes = []
    for backend in ("torch", "triton"):
        chosen = options(prepared, tmp_path / backend, config=still, micro_batch_tokens=64, **few)
        with use_backend(backend):
            assert run(chosen, console, resume=False) == 0
        outcomes.append(outcome(tmp_path / backend, 3))
    (expected, weights), (found, same) = outcomes
    for a, b in zip(expected, found):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
    for name in weights:
        if not name.endswith("key.bias"):
            assert (same[name] - weights[name]).norm() <= 1e-4 * weights[name].norm(), name


def test_a_fresh_bert_base_knows_nothing():
    """Its first loss is that of guessing: ln of the vocabulary plus ln 2."""
    transformers.set_seed(0)
    model = fastbert.BertForPreTraining(model_config("bert-base", 30522, 512)).eval()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30522, (4, 64), generator=generator)
    labels = torch.where(torch.rand(ids.shape, generator=generator) < 0.15, ids, -100)
    with torch.no_grad():
        loss = model(input_ids=ids, labels=labels, next_sentence_label=torch.tensor([0, 1, 0, 1]), return_logits=False).loss
    assert loss.item() == pytest.approx(math.log(30522) + math.log(2), abs=0.15)
