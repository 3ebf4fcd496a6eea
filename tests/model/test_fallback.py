"""`plan_layer` and the other verdicts: which path each part takes, why, and that the whole follows its worst part."""

import functools

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import activations

import fastbert
from fastbert.model.fallback.activations import activation_verdict, fused_activation
from fastbert.model.fallback.hooks import difference_from, find_hook, find_intervention, is_plain, origin_of
from fastbert.model.fallback.plan import (
    LayerPlan,
    embeddings_verdict,
    model_verdict,
    plan_layer,
    pooler_verdict,
    transform_verdict,
)
from fastbert.model.fallback.verdict import FUSED, Path, linear_verdict, norm_verdict, weights_verdict
from fastbert.model.registry import ORIGINALS, REPLACEMENTS, class_named
from tests.model.parity import MASKED_LM, MODEL, assert_close, at_real_tokens, make_batch, pair

PARTS = [name for name in LayerPlan._fields if name not in ("layer", "activation")]


def model_of(head=MODEL, **changes):
    return pair(head, **changes)[1]


def plan_of(model):
    return plan_layer(model.encoder.layer[0], model.config.is_decoder)


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Inherited(nn.Linear):
    pass


def test_a_layer_of_transformers_is_fused_in_every_part():
    plan = plan_of(model_of())
    assert plan == LayerPlan(*[FUSED] * (1 + len(PARTS)), "gelu_erf")
    assert all(getattr(plan, name) is FUSED for name in PARTS), "one constant, not a new one per call"


@pytest.mark.parametrize(
    ("part", "change", "why"),
    [
        ("qkv", lambda layer: setattr(layer.attention.self, "key", Inherited(48, 48)), "key: Inherited is called as a module"),
        ("qkv", lambda layer: setattr(layer.attention.self.key, "bias", None), "only some projections have a bias"),
        ("attention_dense", lambda layer: setattr(layer.attention.output, "dense", Inherited(48, 48)), "as a module"),
        ("attention_norm", lambda layer: setattr(layer.attention.output.LayerNorm, "bias", None), "without weight or bias"),
        ("intermediate", lambda layer: setattr(layer.intermediate, "dense", Inherited(48, 96)), "as a module"),
        ("intermediate", lambda layer: setattr(layer.intermediate, "intermediate_act_fn", nn.SiLU()), "SiLU is not fused"),
        ("output_dense", lambda layer: setattr(layer.output, "dense", Inherited(96, 48)), "as a module"),
        ("output_norm", lambda layer: setattr(layer.output.LayerNorm, "weight", None), "without weight or bias"),
    ],
)
def test_a_part_calls_its_modules_and_the_others_stay_fused(part, change, why):
    model = model_of()
    change(model.encoder.layer[0])
    plan = plan_of(model)
    found = getattr(plan, part)
    assert found.path is Path.MODULES
    assert why in found.why
    assert plan.layer is found
    assert all(getattr(plan, name) is FUSED for name in PARTS if name != part)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda layer: setattr(layer.output, "dense", Scaled(96, 48)), "Scaled instead of Linear"),
        (lambda layer: setattr(layer.output, "LayerNorm", nn.RMSNorm(48)), "RMSNorm instead of LayerNorm"),
        (lambda layer: setattr(layer.output, "dropout", nn.AlphaDropout(0.1)), "AlphaDropout instead of Dropout"),
        (lambda layer: layer.output.register_forward_hook(print), "a forward hook on BertOutput"),
        (lambda layer: layer.output.dropout.register_forward_pre_hook(print), "a forward pre hook on Dropout"),
        (lambda layer: setattr(layer.intermediate, "forward", lambda x: x), "a replaced forward on BertIntermediate"),
        (lambda layer: setattr(layer.intermediate, "intermediate_act_fn", nn.Softmax(-1)), "Softmax may not be elementwise"),
        (lambda layer: setattr(layer, "chunk_size_feed_forward", 2), "chunked"),
        (lambda layer: setattr(layer.attention.self, "is_causal", True), "its is_causal differs from the config's"),
    ],
)
def test_a_layer_falls_back_as_a_whole(change, why):
    model = model_of()
    layer = model.encoder.layer[0]
    layer.attention.output.LayerNorm.bias = None  # a lesser reason does not hide the greater one
    change(layer)
    plan = plan_of(model)
    assert plan.layer.path is Path.TRANSFORMERS
    assert why in plan.layer.why
    assert all(getattr(plan, name) is plan.layer for name in PARTS)
    assert plan.activation is None


@pytest.mark.parametrize("changes", [False, True])
def test_a_hook_on_a_wrapper_sees_what_transformers_gives_it(changes):
    reference, fast = pair(MODEL)
    batch = make_batch("right")
    shapes = []

    def hook(module, args, output):
        shapes.append(tuple(output.shape))
        return 1.5 * output if changes else None

    for model in (reference, fast):
        model.encoder.layer[0] = checkpoint_wrapper(checkpoint_wrapper(model.encoder.layer[0]))
    assert plan_of(fast).layer is FUSED
    for model in (reference, fast):
        model.encoder.layer[0].register_forward_hook(hook)
    assert plan_of(fast).layer.why == "a forward hook on CheckpointWrapper"
    assert "a forward hook on CheckpointWrapper" in str(fastbert.explain(fast))
    with torch.no_grad():
        expected, actual = reference(**batch.inputs()).last_hidden_state, fast(**batch.inputs()).last_hidden_state
    assert_close("states", at_real_tokens(actual, batch.real), at_real_tokens(expected, batch.real))
    assert shapes == [tuple(expected.shape)] * 2


def test_verdicts_on_one_module():
    assert linear_verdict(nn.Linear(2, 3)) is FUSED
    assert linear_verdict(nn.Identity()).path is Path.TRANSFORMERS
    assert norm_verdict(nn.LayerNorm(4)) is FUSED
    hooked = nn.LayerNorm(4)
    hooked.register_forward_hook(print)
    assert norm_verdict(hooked).why == "a forward hook on LayerNorm"
    assert weights_verdict(torch.ones(2), None) is FUSED
    assert weights_verdict(torch.ones(2), dtype=torch.float16).why == "its weight is float32, the states are float16"


@pytest.mark.parametrize(
    ("act", "name"),
    [
        (nn.GELU(), "gelu_erf"),
        (nn.GELU("tanh"), "gelu_tanh"),
        (activations.NewGELUActivation(), "gelu_tanh"),
        (torch.relu, "relu"),
        (nn.SiLU(), None),
    ],
)
def test_the_fused_activations(act, name):
    assert fused_activation(act) == name
    assert activation_verdict(act, name).path is (Path.FUSED if name else Path.MODULES)


def test_verdicts_around_the_layers():
    model = model_of()
    assert model_verdict(model) is FUSED
    assert embeddings_verdict(model.embeddings) is FUSED
    assert pooler_verdict(model.pooler).path is Path.MODULES
    assert model_verdict(model, use_cache=True).why == "a cache of keys and values"
    assert model_verdict(model, kwargs={"output_attentions": True}).path is Path.TRANSFORMERS
    model.pooler.register_forward_hook(print)
    assert pooler_verdict(model.pooler) == (Path.TRANSFORMERS, "a forward hook on BertPooler")
    model.embeddings.LayerNorm.bias = None
    assert embeddings_verdict(model.embeddings).why == "LayerNorm without weight or bias"
    transform = model_of(MASKED_LM).cls.predictions.transform
    assert transform_verdict(transform) is FUSED
    transform.dense = Scaled(48, 48)
    assert transform_verdict(transform) == (Path.MODULES, "Scaled instead of Linear")


def test_hooks_that_count_and_hooks_that_do_not():
    linear = nn.Linear(2, 2)
    assert find_intervention(linear) is None
    assert is_plain(linear, nn.Linear)
    handle = linear.register_full_backward_hook(print)
    assert find_hook(linear) == "a backward hook on Linear"
    assert difference_from(linear, nn.Linear) == "a backward hook on Linear"
    handle.remove()
    linear.forward = linear.forward
    assert find_intervention(linear) == "a replaced forward on Linear"
    assert difference_from(nn.Identity(), nn.Linear) == "Identity instead of Linear"
    assert origin_of(functools.partial(functools.partial(pytest.fixture, 1), 2)) == pytest.fixture.__module__


def test_the_registry_goes_both_ways():
    assert {ORIGINALS[cls]: cls for cls in ORIGINALS} == REPLACEMENTS
    assert all(issubclass(cls, original) and cls.__name__ == original.__name__ for original, cls in REPLACEMENTS.items())
    assert class_named("BertModel") in ORIGINALS
    with pytest.raises(ValueError, match=r"expected one of .*BertLayer.*, got BertFor"):
        class_named("BertFor")
