"""A plan that is kept is the plan that would be made now, whatever was done to the layer since."""

import copy
import gc
import types
import weakref
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers import BertConfig

import fastbert
from fastbert.model.fallback import watch
from fastbert.model.fallback.plan import plan_layer
from fastbert.model.fallback.verdict import Path
from fastbert.model.fallback.watch import current_plan


class OwnLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


class OwnNorm(nn.LayerNorm):
    pass


def make_layer():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=40)
    return fastbert.BertModel(config).eval().encoder.layer[0]


def same_class_hook_dict(layer):
    """All hooks taken away by giving a module a new dictionary, as is often advised, and one added to that."""
    layer.output.dense._forward_hooks = OrderedDict()
    layer.output.dense.register_forward_hook(lambda *_: None)


def lora(layer):
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    layer.attention.self.query = peft.tuners.lora.Linear(layer.attention.self.query, "default", peft.LoraConfig(), r=2)


def accelerate_hook(layer):
    hooks = pytest.importorskip("accelerate.hooks", reason="Accelerate is not installed")
    hooks.add_hook_to_module(layer.intermediate, hooks.AlignDevicesHook(io_same_device=True))
    hooks.add_hook_to_module(layer.output.dense, hooks.ModelHook())


def swapped_projections(layer):
    attention = layer.attention.self
    attention.query, attention.value = OwnLinear(32, 32), attention.query


def activation_function(layer):
    del layer.intermediate.intermediate_act_fn
    layer.intermediate.intermediate_act_fn = F.relu


# What is done to a layer that has a plan, and whether the plan it then has is another one.
CHANGES = {
    "forward hook": (lambda layer: layer.output.dense.register_forward_hook(lambda *_: None), True),
    "pre hook": (lambda layer: layer.attention.self.register_forward_pre_hook(lambda *_: None), True),
    "backward hook": (lambda layer: layer.intermediate.register_full_backward_hook(lambda *_: None), True),
    "backward pre hook": (lambda layer: layer.attention.register_full_backward_pre_hook(lambda *_: None), True),
    "hook on a dropout": (lambda layer: layer.output.dropout.register_forward_hook(lambda *_: None), True),
    "hook on the layer": (lambda layer: layer.register_forward_hook(lambda *_: None), True),
    "another dictionary of hooks": (same_class_hook_dict, True),
    "module": (lambda layer: setattr(layer.attention.self, "key", OwnLinear(32, 32)), True),
    "two modules": (swapped_projections, True),
    "a like module": (lambda layer: setattr(layer.output, "dense", nn.Linear(40, 32)), None),
    "container": (lambda layer: setattr(layer, "output", nn.Sequential()), True),
    "norm": (lambda layer: setattr(layer.output, "LayerNorm", OwnNorm(32)), True),
    "dropout": (lambda layer: setattr(layer.output, "dropout", nn.AlphaDropout()), True),
    "no dropout": (lambda layer: setattr(layer.output, "dropout", nn.Identity()), None),
    "activation": (lambda layer: setattr(layer.intermediate, "intermediate_act_fn", nn.SiLU()), True),
    "a function as activation": (activation_function, True),
    "formula of the activation": (
        lambda layer: setattr(layer.intermediate, "intermediate_act_fn", nn.GELU(approximate="tanh")),
        True,
    ),
    "class": (lambda layer: setattr(layer.attention.output.dense, "__class__", OwnLinear), True),
    "forward of an instance": (lambda layer: setattr(layer.attention, "forward", lambda *_, **__: None), True),
    "forward of a linear": (
        lambda layer: setattr(layer.output.dense, "forward", types.MethodType(nn.Linear.forward, layer.output.dense)),
        True,
    ),
    "bias taken away": (lambda layer: setattr(layer.attention.self.query, "bias", None), True),
    "norm without weights": (lambda layer: setattr(layer.attention.output.LayerNorm, "weight", None), True),
    "parametrisation": (lambda layer: parametrizations.weight_norm(layer.output.dense), True),
    "pruning": (lambda layer: prune.l1_unstructured(layer.output.dense, "weight", 0.5), True),
    "compiled": (lambda layer: setattr(layer, "_compiled_call_impl", lambda *_: None), True),
    "chunks": (lambda layer: setattr(layer, "chunk_size_feed_forward", 4), True),
    "causal": (lambda layer: setattr(layer.attention.self, "is_causal", True), True),
    "head size": (lambda layer: setattr(layer.attention.self, "attention_head_size", 12), True),
    "LoRA": (lora, True),
    "Accelerate": (accelerate_hook, True),
    "weights in place": (lambda layer: layer.output.dense.weight.data.zero_(), False),
    "weights exchanged": (lambda layer: setattr(layer.output.dense, "weight", nn.Parameter(torch.ones(32, 40))), False),
    "mode": (lambda layer: layer.train(), False),
    "dtype": (lambda layer: layer.half(), False),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_plan_is_the_one_that_would_be_made_now(name):
    """differs: None where a plan with the same verdicts is made for other modules."""
    change, differs = CHANGES[name]
    layer = make_layer()
    before = current_plan(layer, False)
    assert current_plan(layer, False) is before
    change(layer)
    after = current_plan(layer, False)
    assert after == plan_layer(layer, False)
    assert (after != before) is bool(differs)
    assert (after is before) is (differs is False)


def test_a_change_taken_back():
    layer = make_layer()
    before = current_plan(layer, False)
    handle = layer.output.dense.register_forward_hook(lambda *_: None)
    assert current_plan(layer, False) != before
    handle.remove()
    assert current_plan(layer, False) == before
    layer.chunk_size_feed_forward = 4
    assert current_plan(layer, False).layer.path is Path.TRANSFORMERS
    layer.chunk_size_feed_forward = 0
    assert current_plan(layer, False) == before


def test_the_same_hook_moved_to_another_module():
    layer = make_layer()

    def hook(*_):
        return None

    first = layer.attention.self.query.register_forward_hook(hook)
    assert "Linear" in current_plan(layer, False).layer.why
    first.remove()
    layer.attention.output.LayerNorm.register_forward_hook(hook)
    assert "LayerNorm" in current_plan(layer, False).layer.why


def test_a_method_of_the_class(monkeypatch):
    layer = make_layer()
    assert current_plan(layer, False).layer.path is Path.FUSED
    monkeypatch.setattr(type(layer), "feed_forward_chunk", lambda self, x: x)
    assert "feed_forward_chunk" in current_plan(layer, False).layer.why


def test_one_layer_in_two_models():
    layer = make_layer()
    assert current_plan(layer, False).layer.path is Path.FUSED
    assert "is_causal" in current_plan(layer, True).layer.why
    assert current_plan(layer, False).layer.path is Path.FUSED


def test_a_copy_has_a_plan_of_its_own():
    layer = make_layer()
    plan = current_plan(layer, False)
    for other in (copy.deepcopy(layer), copy.copy(layer)):
        other.output.dense.register_forward_hook(lambda *_: None)
        assert current_plan(other, False) != plan
        assert current_plan(copy.deepcopy(other), False) != plan
    assert current_plan(make_layer(), False) == plan


def test_a_layer_is_freed_with_its_plan():
    layer = make_layer()
    current_plan(layer, False)
    gone, number = weakref.ref(layer), len(watch._watches)
    del layer
    gc.collect()
    assert gone() is None
    assert len(watch._watches) < number
