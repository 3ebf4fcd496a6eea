"""Recipes: what each difference between the presets does, the rate of every step, and what is refused."""

import json
from dataclasses import FrozenInstanceError, asdict, fields, replace

import pytest
import torch
import transformers
from torch import nn

import fastbert
from fastbert.pretraining.optimizers import AdamWithoutBiasCorrection, Lamb
from fastbert.pretraining.recipe import OPTIMIZERS, PRESETS, Recipe, create_optimizer, create_schedule, describe

MODERN, GOOGLE = PRESETS["modern"], PRESETS["google-2018"]


def rates(recipe, max_steps, steps=None):
    """The learning rate of every step, as a share of the peak."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=recipe.learning_rate)
    schedule = create_schedule(recipe, optimizer, max_steps)
    shares = []
    for _ in range(max_steps if steps is None else steps):
        shares.append(optimizer.param_groups[0]["lr"] / recipe.learning_rate)
        optimizer.step()
        schedule.step()
    return shares


def tiny_bert():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return fastbert.BertForPreTraining(fastbert.BertConfig(vocab_size=30, max_position_embeddings=8, **sizes))


# ---- the presets, one difference after the other -----------------------------------------------------------------------


def test_presets_are_as_published():
    assert list(PRESETS) == ["modern", "google-2018"]
    assert asdict(MODERN) == {
        "optimizer": "adamw",
        "learning_rate": 5e-4,
        "betas": (0.9, 0.98),
        "eps": 1e-6,
        "weight_decay": 0.01,
        "warmup_steps": None,
        "warmup_ratio": 0.06,
        "decay": "linear",
        "decay_from": "warmup-end",
        "max_grad_norm": 1.0,
        "static_masking": False,
    }
    assert asdict(GOOGLE) == {
        "optimizer": "adam-no-bias-correction",
        "learning_rate": 1e-4,
        "betas": (0.9, 0.999),
        "eps": 1e-6,
        "weight_decay": 0.01,
        "warmup_steps": 10_000,
        "warmup_ratio": None,
        "decay": "linear",
        "decay_from": "step-0",
        "max_grad_norm": 1.0,
        "static_masking": True,
    }


def test_describe_names_every_difference_of_the_presets():
    lines = describe(GOOGLE)
    assert [line.split(":")[0] for line in lines] == ["optimizer", "learning rate", "betas", "warm-up", "decay", "masks"]
    assert lines[1] == "learning rate: 0.0001 at its peak; not 0.0005 at its peak"
    assert len(describe(MODERN, GOOGLE)) == len(lines)
    assert describe(MODERN) == describe(GOOGLE, GOOGLE) == []


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "lamb"},
        {"learning_rate": 5.0001e-4},
        {"betas": (0.9, 0.9800001)},
        {"eps": 1.0001e-6},
        {"weight_decay": 0.0},
        {"warmup_ratio": 0.0600001},
        {"warmup_ratio": None, "warmup_steps": 7},
        {"decay_from": "step-0"},
        {"max_grad_norm": 0.0},
        {"static_masking": True},
    ],
    ids=lambda change: " ".join(change),
)
def test_describe_sees_every_field(change):
    assert len(describe(replace(MODERN, **change))) == 1


def test_no_field_is_left_out_of_that_test():
    assert {field.name for field in fields(Recipe)} == {
        "optimizer",
        "learning_rate",
        "betas",
        "eps",
        "weight_decay",
        "warmup_steps",
        "warmup_ratio",
        "decay_from",
        "max_grad_norm",
        "static_masking",
        "decay",  # decay has one value
    }


def test_difference_of_the_optimizer():
    modern, google = create_optimizer(MODERN, tiny_bert()), create_optimizer(GOOGLE, tiny_bert())
    assert type(modern) is torch.optim.AdamW
    assert type(google) is AdamWithoutBiasCorrection

    def first_step(recipe):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        before = model.weight.detach().clone()
        model(torch.ones(1, 3)).sum().backward()
        create_optimizer(replace(recipe, learning_rate=1.0, weight_decay=0.0, betas=(0.9, 0.999)), model).step()
        return (before - model.weight).mean().item()

    assert first_step(MODERN) == pytest.approx(1, rel=1e-4)
    assert first_step(GOOGLE) == pytest.approx(0.1 / 0.001**0.5, rel=1e-4)


def test_difference_of_rate_and_betas():
    for recipe, rate, betas in ((MODERN, 5e-4, (0.9, 0.98)), (GOOGLE, 1e-4, (0.9, 0.999))):
        for group in create_optimizer(recipe, tiny_bert()).param_groups:
            assert (group["lr"], group["betas"], group["eps"]) == (rate, betas, 1e-6)


def test_difference_of_the_warm_up():
    assert [MODERN.num_warmup_steps(steps) for steps in (1_000_000, 50, 1)] == [60_000, 3, 1]
    assert [GOOGLE.num_warmup_steps(steps) for steps in (1_000_000, 10_000)] == [10_000, 10_000]


def test_difference_of_the_decay():
    """At the end of warm-up: the peak itself, or what is left of the fall that began at step 0."""
    both = {recipe.decay_from: rates(replace(recipe, warmup_steps=20, warmup_ratio=None), 100) for recipe in (MODERN, GOOGLE)}
    assert both["warmup-end"][:21] == pytest.approx([step / 20 for step in range(20)] + [1.0])
    assert both["step-0"][:21] == pytest.approx([step / 20 for step in range(20)] + [0.8])


def test_difference_of_the_masks():
    assert (MODERN.static_masking, GOOGLE.static_masking) == (False, True)


# ---- optimizers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("adam-no-bias-correction", AdamWithoutBiasCorrection), ("lamb", Lamb)]
)
def test_create_optimizer(name, kind):
    model = tiny_bert()
    optimizer = create_optimizer(replace(MODERN, optimizer=name, weight_decay=0.3), model)
    assert type(optimizer) is kind
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    ids = torch.arange(8)[None]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model(input_ids=ids, labels=ids, next_sentence_label=torch.tensor([1])).loss.backward()
    optimizer.step()
    assert not any(torch.equal(old, new) for old, new in zip(before, model.parameters()))


def test_every_optimizer_is_created_above():
    assert list(OPTIMIZERS) == ["adamw", "adam-no-bias-correction", "lamb"]


# ---- schedules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("warmup_steps", "max_steps"), [(0, 1), (0, 7), (1, 7), (3, 10), (10, 10), (100, 1000)])
def test_decay_from_warmup_end_is_transformers_schedule(warmup_steps, max_steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = transformers.get_linear_schedule_with_warmup(optimizer, warmup_steps, max_steps).lr_lambdas[0]
    recipe = replace(MODERN, warmup_steps=warmup_steps, warmup_ratio=None)
    assert rates(recipe, max_steps, max_steps + 3) == pytest.approx(
        [reference(step) for step in range(max_steps + 3)], rel=1e-15
    )


def test_decay_from_warmup_end_by_hand():
    recipe = replace(MODERN, warmup_steps=2, warmup_ratio=None)
    assert rates(recipe, 6, 8) == pytest.approx([0, 1 / 2, 1, 3 / 4, 1 / 2, 1 / 4, 0, 0])


def test_decay_from_step_0_by_hand():
    recipe = replace(GOOGLE, warmup_steps=2)
    assert rates(recipe, 5, 7) == pytest.approx([0, 1 / 2, 3 / 5, 2 / 5, 1 / 5, 0, 0])
    assert rates(replace(GOOGLE, warmup_steps=0), 4) == pytest.approx([1, 3 / 4, 1 / 2, 1 / 4])


def test_the_published_schedule_at_known_steps():
    schedule = create_schedule(GOOGLE, create_optimizer(GOOGLE, nn.Linear(2, 2)), 1_000_000).lr_lambdas[0]
    known = {0: 0.0, 1: 1e-4, 9_999: 0.9999, 10_000: 0.99, 500_000: 0.5, 999_999: 1e-6, 1_000_000: 0.0}
    assert {step: schedule(step) for step in known} == pytest.approx(known, abs=1e-12)


@pytest.mark.parametrize("decay_from", ["warmup-end", "step-0"])
def test_every_group_follows_and_a_checkpoint_continues(decay_from):
    recipe = replace(MODERN, decay_from=decay_from, warmup_ratio=0.2)

    def run(steps, optimizer, schedule):
        seen = []
        for _ in range(steps):
            seen.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            schedule.step()
        return seen

    def fresh():
        optimizer = create_optimizer(recipe, nn.Linear(2, 2))
        return optimizer, create_schedule(recipe, optimizer, 20)

    through = run(20, *fresh())
    assert all(decayed == undecayed for decayed, undecayed in through)
    optimizer, schedule = fresh()
    first = run(9, optimizer, schedule)
    again, again_schedule = fresh()
    again.load_state_dict(optimizer.state_dict())
    again_schedule.load_state_dict(schedule.state_dict())
    assert first + run(11, again, again_schedule) == through


# ---- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"optimizer": "sgd"}, ValueError, "optimizer to be one of adamw, adam-no-bias-correction, lamb, got 'sgd'"),
        ({"optimizer": torch.optim.AdamW}, ValueError, "optimizer to be one of adamw.* got <class"),
        ({"learning_rate": 0}, ValueError, "learning_rate to be a finite number above 0, got 0"),
        ({"learning_rate": "1e-4"}, TypeError, "learning_rate .* got '1e-4'"),
        ({"betas": (0.9, 1.5)}, ValueError, r"betas\[1\] .* got 1.5"),
        ({"betas": None}, TypeError, "betas to be two numbers, got None"),
        ({"eps": 0.0}, ValueError, "eps .* above 0, got 0.0"),
        ({"weight_decay": -0.01}, ValueError, "weight_decay .* of at least 0, got -0.01"),
        ({"warmup_steps": 5}, ValueError, "either warmup_steps or warmup_ratio .* got warmup_steps=5 and warmup_ratio=0.06"),
        ({"warmup_ratio": None}, ValueError, "got warmup_steps=None and warmup_ratio=None"),
        ({"warmup_ratio": 1.0}, ValueError, "warmup_ratio .* below 1, got 1.0"),
        ({"warmup_ratio": -0.1}, ValueError, "warmup_ratio .* got -0.1"),
        ({"warmup_ratio": None, "warmup_steps": -1}, ValueError, "warmup_steps to be a whole number of at least 0, got -1"),
        ({"warmup_ratio": None, "warmup_steps": 1.5}, TypeError, "warmup_steps to be a whole number of at least 0, got 1.5"),
        ({"warmup_ratio": None, "warmup_steps": True}, TypeError, "warmup_steps .* got True"),
        ({"decay": "cosine"}, ValueError, "decay to be one of linear, got 'cosine'"),
        ({"decay_from": "start"}, ValueError, "decay_from to be one of warmup-end, step-0, got 'start'"),
        ({"max_grad_norm": -1}, ValueError, "max_grad_norm .* got -1"),
        ({"max_grad_norm": None}, TypeError, "max_grad_norm .* got None"),
        ({"static_masking": 1}, TypeError, "static_masking to be True or False, got 1"),
    ],
)
def test_rejects_fields(change, error, message):
    with pytest.raises(error, match=message):
        replace(MODERN, **change)


@pytest.mark.parametrize(
    ("max_steps", "error", "message"),
    [
        (9_999, ValueError, "max_steps of at least warmup_steps=10000, got 9999"),
        (0, ValueError, "max_steps to be a whole number of at least 1, got 0"),
        (1e6, TypeError, "max_steps to be a whole number of at least 1, got 1000000.0"),
    ],
)
def test_schedule_rejects_max_steps(max_steps, error, message):
    with pytest.raises(error, match=message):
        create_schedule(GOOGLE, create_optimizer(GOOGLE, nn.Linear(2, 2)), max_steps)


def test_presets_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        MODERN.eps = 1.0
    with pytest.raises(TypeError):
        PRESETS["modern"] = GOOGLE


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_recipe_survives_json(name):
    assert Recipe(**json.loads(json.dumps(asdict(PRESETS[name])))) == PRESETS[name]
