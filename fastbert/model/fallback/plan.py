"""What falls back to transformers, and why: the decision for every part of a model, from its live modules.

Nothing is cached between calls, so a hook, an exchanged submodule or a replaced `forward` takes effect at the next call.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert import modeling_bert as hf
from transformers.utils import output_capturing

from fastbert.kernels.limits import HEAD_DIM_MULTIPLE, MAX_HEAD_DIM, MIN_HEAD_DIM
from fastbert.model.fallback.activations import activation_verdict, fused_activation
from fastbert.model.fallback.hooks import (
    difference_from,
    find_global_hook,
    find_intervention,
    is_dropout,
    is_plain,
    is_touched,
    origin_of,
)
from fastbert.model.fallback.parts import LayerParts, inside_wrapper, parts_of, unwrap, weights_of
from fastbert.model.fallback.verdict import (
    FUSED,
    NORM_WITHOUT_WEIGHTS,
    Path,
    Verdict,
    linear_verdict,
    norm_verdict,
    weights_verdict,
)

# What transformers' attention functions read from the model's keyword arguments; whatever else is there they ignore.
ATTENTION_KWARGS = frozenset(
    "block_mask debug_io is_causal output_cross_attentions position_bias s_aux score_mod sliding_window softcap".split()
)
ATTENTION_NAMES = frozenset(
    ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4", None)
)
ON_FIRST_ROWS = Verdict(Path.MODULES, "one row per sequence")


class LayerPlan(NamedTuple):
    """How one layer is computed, as a whole and part by part.

    layer: the first verdict that is furthest from FUSED; TRANSFORMERS applies to all parts. activation: name of the fused
    activation, or None.
    """

    layer: Verdict
    qkv: Verdict
    attention_dense: Verdict
    attention_norm: Verdict
    intermediate: Verdict
    output_dense: Verdict
    output_norm: Verdict
    activation: str | None


def plan_layer(layer: nn.Module, causal: bool) -> LayerPlan:
    """How this layer is computed, from its live modules. causal: whether the model masks the future."""
    why = _find_on_wrappers(layer)
    layer = unwrap(layer)
    why = why or _find_in_containers(layer)
    if why is not None:
        return _padded_plan(Verdict(Path.TRANSFORMERS, why))
    parts = parts_of(layer)
    why = find_intervention(layer, called=True) or _find_setting(layer, parts.self_attention, causal) or _find_dropout(parts)
    if why is not None:
        return _padded_plan(Verdict(Path.TRANSFORMERS, why))
    activation = fused_activation(parts.activation)
    act = activation_verdict(parts.activation, activation)
    intermediate = linear_verdict(parts.intermediate_dense)
    verdicts = (
        _projections_verdict(parts),
        linear_verdict(parts.attention_dense),
        norm_verdict(parts.attention_norm),
        act if intermediate.path is Path.FUSED else intermediate,
        linear_verdict(parts.output_dense),
        norm_verdict(parts.output_norm),
    )
    whole = act
    for verdict in verdicts:
        if verdict.path is Path.FUSED or whole.path is Path.TRANSFORMERS:
            continue
        if verdict.path is Path.TRANSFORMERS or whole.path is Path.FUSED:
            whole = verdict
    return _padded_plan(whole) if whole.path is Path.TRANSFORMERS else LayerPlan(whole, *verdicts, activation)


def _padded_plan(verdict: Verdict) -> LayerPlan:
    return LayerPlan(verdict, verdict, verdict, verdict, verdict, verdict, verdict, None)


def _find_on_wrappers(layer: Any) -> str | None:
    """The first hook or replaced forward on the modules that wrap a layer, or None."""
    why, inside = None, inside_wrapper(layer)
    while why is None and inside is not None:
        why, layer = find_intervention(layer, called=True), inside
        inside = inside_wrapper(layer)
    return why


def _find_in_containers(layer: Any) -> str | None:
    """What differs from transformers' modules that hold the parts of a layer, or None."""
    if not getattr(type(layer).forward, "takes_packed", False):
        return f"the layer is a {type(layer).__name__}"
    attention = layer._modules["attention"]
    if type(attention) is not hf.BertAttention:
        return f"the attention is a {type(attention).__name__}"
    containers = (
        (attention, hf.BertAttention),
        (attention._modules["self"], hf.BertSelfAttention),
        (attention._modules["output"], hf.BertSelfOutput),
        (layer._modules["intermediate"], hf.BertIntermediate),
        (layer._modules["output"], hf.BertOutput),
    )
    for module, cls in containers:
        if type(module) is not cls:
            return f"{type(module).__name__} instead of {cls.__name__}"
        if is_touched(module):
            why = find_intervention(module)
            if why is not None:
                return why
    return None


def _find_dropout(parts: LayerParts) -> str | None:
    """A dropout that the fused operations would not compute, or None."""
    for dropout in (parts.attention_dropout, parts.hidden_dropout, parts.output_dropout):
        if not is_dropout(dropout):
            return difference_from(dropout, nn.Dropout)
    return None


def _find_setting(layer: Any, attention: Any, causal: bool) -> str | None:
    """The first setting or override of the layer that its fused operations would ignore, or None."""
    if layer._compiled_call_impl is not None:
        return "the layer is compiled separately"
    if layer.chunk_size_feed_forward > 0:
        return "the feed-forward is chunked (chunk_size_feed_forward)"
    if type(layer).feed_forward_chunk is not hf.BertLayer.feed_forward_chunk:
        return "feed_forward_chunk is overridden"
    if attention.is_causal != causal:
        return "its is_causal differs from the config's"
    head_dim = attention.attention_head_size
    if MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM and head_dim % HEAD_DIM_MULTIPLE == 0:
        return None
    return f"head_dim {head_dim} is not a multiple of {HEAD_DIM_MULTIPLE} from {MIN_HEAD_DIM} to {MAX_HEAD_DIM}"


def _projections_verdict(parts: LayerParts) -> Verdict:
    query, key, value = linear_verdict(parts.query), linear_verdict(parts.key), linear_verdict(parts.value)
    if query.path is Path.FUSED and key.path is Path.FUSED and value.path is Path.FUSED:
        has_bias = weights_of(parts.query)[1] is not None
        if (weights_of(parts.key)[1] is not None) is has_bias and (weights_of(parts.value)[1] is not None) is has_bias:
            return FUSED
        return Verdict(Path.MODULES, "only some projections have a bias")
    for verdict in (query, key, value):
        if verdict.path is Path.TRANSFORMERS:
            return verdict
    named = (("query", query), ("key", key), ("value", value))
    return Verdict(Path.MODULES, "; ".join(f"{name}: {found.why}" for name, found in named if found.why))


def transform_verdict(transform: Any) -> Verdict:
    """How the transform in front of the vocabulary projection is computed: FUSED or MODULES."""
    dense, norm = transform._modules["dense"], transform._modules["LayerNorm"]
    if not is_plain(dense, nn.Linear):
        return Verdict(Path.MODULES, difference_from(dense, nn.Linear))
    if not is_plain(norm, nn.LayerNorm):
        return Verdict(Path.MODULES, difference_from(norm, nn.LayerNorm))
    if norm.weight is None or norm.bias is None:
        return NORM_WITHOUT_WEIGHTS
    why = find_global_hook()
    if why is not None:
        return Verdict(Path.MODULES, why)
    act = transform.transform_act_fn
    found = activation_verdict(act, fused_activation(act))
    return found if found.path is Path.FUSED else Verdict(Path.MODULES, found.why)


def embeddings_verdict(embeddings: Any, with_ids: bool = True) -> Verdict:
    """How the embeddings are computed: FUSED, or TRANSFORMERS, which is their module on padded ids."""
    why = _find_in_embeddings(embeddings, with_ids)
    return FUSED if why is None else Verdict(Path.TRANSFORMERS, why)


def _find_in_embeddings(embeddings: Any, with_ids: bool) -> str | None:
    """The first thing that the fused embedding would compute differently or cannot read, or None."""
    if type(embeddings) is not hf.BertEmbeddings:
        return f"the embeddings are a {type(embeddings).__name__}"
    why = find_intervention(embeddings)
    if why is not None:
        return why
    tables = [embeddings.token_type_embeddings, embeddings.position_embeddings]
    tables += [embeddings.word_embeddings] if with_ids else []
    for table in tables:
        if not is_plain(table, nn.Embedding):
            return difference_from(table, nn.Embedding)
        if table.max_norm is not None or table.scale_grad_by_freq or table.sparse:
            return "an Embedding with max_norm, scale_grad_by_freq or sparse"
        if table.padding_idx is not None and table is not embeddings.word_embeddings:
            return "an Embedding of types or positions with padding_idx"
        if table.weight.dtype != tables[0].weight.dtype:
            return "the embedding tables differ in dtype"
    norm = embeddings.LayerNorm
    if not is_plain(norm, nn.LayerNorm):
        return difference_from(norm, nn.LayerNorm)
    if norm.weight is None or norm.bias is None:
        return NORM_WITHOUT_WEIGHTS.why
    if not is_dropout(embeddings.dropout):
        return difference_from(embeddings.dropout, nn.Dropout)
    return weights_verdict(*[table.weight for table in tables], norm.weight, norm.bias).why or None


def pooler_verdict(pooler: Any) -> Verdict:
    """How the pooler is called: MODULES, which is on first rows alone, or TRANSFORMERS, which is on padded states."""
    if type(pooler) is not hf.BertPooler:
        return Verdict(Path.TRANSFORMERS, f"the pooler is a {type(pooler).__name__}")
    why = find_intervention(pooler)
    return ON_FIRST_ROWS if why is None else Verdict(Path.TRANSFORMERS, why)


def model_verdict(
    model: Any,
    *,
    attention_mask: Any = None,
    past_key_values: Any = None,
    use_cache: bool = False,
    encoder_inputs: bool = False,
    kwargs: dict[str, Any] | None = None,
) -> Verdict:
    """Whether this call falls back to transformers as a whole: FUSED or TRANSFORMERS."""
    why = _find_in_call(model.config, attention_mask, past_key_values, use_cache, encoder_inputs, kwargs or {})
    why = why or _find_in_attention(model.config) or _find_in_encoder(model)
    return FUSED if why is None else Verdict(Path.TRANSFORMERS, why)


def _find_in_call(
    config: Any, attention_mask: Any, past_key_values: Any, use_cache: bool, encoder_inputs: bool, kwargs: dict[str, Any]
) -> str | None:
    """The first argument that needs transformers' encoder, or None."""
    if kwargs.get("output_attentions", getattr(config, "output_attentions", False)):
        return "output_attentions needs the whole attention matrix"
    states = kwargs.get("output_hidden_states", getattr(config, "output_hidden_states", False))
    if states and states is not True:
        return "output_hidden_states selects layers, which versions of transformers treat differently"
    if past_key_values is not None or use_cache:
        return "a cache of keys and values"
    if encoder_inputs:
        return "cross-attention (encoder_hidden_states)"
    if attention_mask is not None and not (isinstance(attention_mask, Tensor) and attention_mask.dim() <= 2):
        return f"an attention mask of {getattr(attention_mask, 'ndim', 'unknown')} dimensions"
    for name in ATTENTION_KWARGS:
        if kwargs.get(name) is not None:
            return f"the argument {name}"
    if getattr(config, "is_causal", None) is not None:
        return "config.is_causal is set"
    return None


def is_flash_attention(name: str | None) -> bool:
    """Whether this is transformers' own flash attention, from the package or from the Hub's kernels."""
    return name is not None and (
        name.startswith("flash_attention_") or ALL_ATTENTION_FUNCTIONS.get(name) is flash_attention_forward
    )


def _find_in_attention(config: Any) -> str | None:
    """A user's own attention or mask function that is in force, or None."""
    name = config._attn_implementation
    if name not in ATTENTION_NAMES and not is_flash_attention(name):
        return f"attn_implementation {name!r} is not one of transformers'"
    if torch.compiler.is_compiling():
        return None
    for registry, what in ((ALL_ATTENTION_FUNCTIONS, "attention"), (ALL_MASK_ATTENTION_FUNCTIONS, "mask")):
        function = registry.get(name)
        if function is not None and not origin_of(function).startswith("transformers."):
            return f"the {what} function registered for {name!r} is not transformers'"
    return None


def _find_in_encoder(model: Any) -> str | None:
    """The first thing around the layers that the packed path would skip, or None."""
    encoder = model.encoder
    if type(encoder) is not hf.BertEncoder:
        return f"the encoder is a {type(encoder).__name__}"
    if type(model)._create_attention_masks is not hf.BertModel._create_attention_masks:
        return "_create_attention_masks is overridden"
    why = find_intervention(encoder) or find_intervention(encoder.layer) or find_global_hook()
    if why is None and not torch.compiler.is_compiling() and output_capturing._active_collector.get():
        return "an enclosing model records outputs"
    return why
