"""Layer plans that are made once and asked for again: whether anything that a plan was made from has changed since.

Making a plan asks module by module and takes longer than a layer computes at a small batch. A `_Watch` keeps what `plan_layer`
looks at and compares all of it before each call, in passes that run inside the interpreter; where anything differs, the plan
is made anew. What can differ without being seen here is read at every call by the layer itself: tensors, rates, modes, eps.
"""

import weakref
from itertools import chain, repeat
from operator import itemgetter
from typing import Any

import torch
from torch import nn

from fastbert.model.fallback.hooks import HOOKS
from fastbert.model.fallback.parts import parts_of, unwrap
from fastbert.model.fallback.plan import LayerPlan, plan_layer
from fastbert.model.fallback.verdict import Path

_children_of = itemgetter("_modules")
_parameters_of = itemgetter("_parameters")
_hooks_of = itemgetter(*HOOKS)
_Watches = weakref.WeakKeyDictionary[nn.Module, "_Watch"]
_watches: _Watches = weakref.WeakKeyDictionary()


def current_plan(layer: nn.Module, causal: bool) -> LayerPlan:
    """`plan_layer(layer, causal)`, made again only where something that it looks at has changed."""
    if torch.compiler.is_compiling():
        return plan_layer(layer, causal)
    watch = _watches.get(layer)
    if watch is None or not watch.holds(layer, causal):
        watch = _watches[layer] = _Watch(layer, causal)
    return watch.plan


class _Watch:
    """A plan, and what it was made from. Holds the modules inside the layer, not the layer, which would then never be freed."""

    def __init__(self, layer: nn.Module, causal: bool) -> None:
        self.plan = plan_layer(layer, causal)
        self.inside = list(layer.modules())[1:]
        self.dicts = [layer.__dict__, *(module.__dict__ for module in self.inside)]
        self.settings = _settings_of(unwrap(layer), self.plan)
        self.inner = [layer, *self.inside].index(unwrap(layer))
        self.children = self._children()
        self.classes = self._classes(layer)
        self.hooks = self._hooks()
        self.attributes = self._attributes(causal)

    def holds(self, layer: nn.Module, causal: bool) -> bool:
        """Whether `plan_layer` would find what it found; False for a layer that transformers computes, which is not watched."""
        return (
            self.plan.layer.path is not Path.TRANSFORMERS
            and self._children() == self.children
            and self._classes(layer) == self.classes
            and self._hooks() == self.hooks
            and self._attributes(causal) == self.attributes
        )

    def _children(self) -> list[Any]:
        return list(chain.from_iterable(map(dict.values, map(_children_of, self.dicts))))

    def _classes(self, layer: nn.Module) -> list[Any]:
        """The types, and the two methods of the layer's own type that a plan asks for."""
        types = [type(layer), *map(type, self.inside)]
        inner: Any = types[self.inner]
        return [inner.forward, getattr(inner, "feed_forward_chunk", None), *types]

    def _hooks(self) -> list[Any]:
        """Nothing where no module has a hook; otherwise every hook, by module and kind."""
        found = list(map(_hooks_of, self.dicts))
        if not any(chain.from_iterable(found)):
            return []
        return [tuple(hooks.values()) for hooks in chain.from_iterable(found)]

    def _attributes(self, causal: bool) -> list[Any]:
        """What plans read besides: replaced forwards, which parameters there are, settings."""
        dicts = self.dicts
        found = [causal, *map(type, chain.from_iterable(map(dict.values, map(_parameters_of, dicts))))]
        found += [attributes.get(name) for attributes, name in self.settings]
        if any(map(dict.__contains__, dicts, repeat("forward"))):  # Accelerate's hooks come with one
            found += [attributes.get("forward") for attributes in dicts]
            found += [attributes.get("_hf_hook") for attributes in dicts]
        return found


def _settings_of(layer: Any, plan: LayerPlan) -> list[tuple[dict[str, Any], str]]:
    """The attributes of modules that plans depend on, each with the dictionary that holds it."""
    if plan.layer.path is Path.TRANSFORMERS:
        return []
    parts, intermediate = parts_of(layer), layer._modules["intermediate"]
    where = [
        (layer, ("_compiled_call_impl", "chunk_size_feed_forward")),
        (parts.self_attention, ("is_causal", "attention_head_size")),
        (intermediate, ("intermediate_act_fn",)),
        (parts.attention_norm, ("normalized_shape",)),
        (parts.output_norm, ("normalized_shape",)),
    ]
    if isinstance(parts.activation, nn.Module):
        where.append((parts.activation, ("approximate",)))
    return [(module.__dict__, name) for module, names in where for name in names]
