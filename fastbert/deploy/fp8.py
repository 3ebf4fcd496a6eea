"""Inference with the four products of each layer in fp8 (e4m3): `quantize` and `dequantize`. Off unless asked for.

A quantised layer is ours by one more change of its `__class__`. Its fp8 weights stand beside the module's own, which stay, so
that checkpoints, `dequantize` and transformers' path see what they always saw. The states between products are quantised where
they are made: in the layer norm and in the activation's epilogue; attention's output takes a pass of its own.
"""

import weakref
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastbert.deploy.gptq import Moments, round_weight
from fastbert.kernels import fp8, functional
from fastbert.kernels.backend import autocast_dtype, records_portably
from fastbert.kernels.fp8_format import E4M3, GROUP
from fastbert.kernels.reference import activate
from fastbert.model import calls
from fastbert.model.bert import BertModel, berts
from fastbert.model.fallback import LayerPlan, plan_layer
from fastbert.model.layer import BertLayer, Quantized, takes_packed
from fastbert.model.layout import Layout
from fastbert.model.parts import parts_of, weights_of
from fastbert.model.verdict import Path, weights_verdict

PRODUCTS = ("qkv", "attention", "intermediate", "output")  # of a layer, in the order they run
ORIGINAL_WEIGHTS = (
    "a quantised layer ran on its original weights, since the call needs transformers' path: see fastbert.explain"
)
Model = TypeVar("Model", bound=nn.Module)
Recorder = Callable[[str, Tensor], None]  # told of every product that is not in fp8, and of what it reads
_versions: "weakref.WeakKeyDictionary[nn.Module, tuple[tuple[weakref.ref, int], ...]]" = weakref.WeakKeyDictionary()


class Fp8Weight(nn.Module):
    """A weight in fp8 with a scale per row, out of reach of `.to(dtype)`: its buffers are the bits as integers."""

    bits: Tensor
    scale_bits: Tensor
    bias: Tensor | None

    def __init__(self, q: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        """q: float8_e4m3fn (N, K). scale: float32 (N,). bias: (N,) or None, in the dtype of the states."""
        super().__init__()
        self.register_buffer("bits", q.view(torch.uint8), persistent=False)
        self.register_buffer("scale_bits", scale.view(torch.int32), persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    @property
    def q(self) -> Tensor:
        return self.bits.view(E4M3)

    @property
    def scale(self) -> Tensor:
        return self.scale_bits.view(torch.float32)


class Fp8BertLayer(BertLayer):
    """A layer with the products in its module `fp8` in that format; transformers' path warns and takes the original weights."""

    fp8: nn.ModuleDict
    fp8_kept: dict[str, str]  # product -> why it is not in fp8
    hands_on: bool  # whether the next layer's first product is in fp8
    recorder: Recorder | None

    @takes_packed
    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *args: Any,
        packed: Layout | None = None,
        plan: LayerPlan | None = None,
        quantized: Quantized | None = None,
        **kwargs: Any,
    ) -> Any:
        """As in `BertLayer`. Raises RuntimeError in training, where a gradient is wanted, and once a weight has changed."""
        if packed is None or plan is None:
            calls.warn_once(self, ORIGINAL_WEIGHTS, ORIGINAL_WEIGHTS)
            return super().forward(hidden_states, attention_mask, *args, packed=packed, plan=plan, **kwargs)
        x, layout, parts = hidden_states, packed.to(hidden_states.device), parts_of(self)
        self._refuse(plan, x)
        inner, weights = parts.self_attention, self._modules["fp8"]._modules  # type: ignore[union-attr]
        qkv_weight, context_weight, first, second = (weights.get(name) for name in PRODUCTS)

        if qkv_weight is None:
            self._record("qkv", x)
            projections = [weights_of(module) for module in (parts.query, parts.key, parts.value)]
            qkv = functional.qkv_linear(x, [weight for weight, _ in projections], [bias for _, bias in projections])  # type: ignore[misc]
        else:
            qkv = _linear(quantized or fp8.quantize(x), qkv_weight, qkv_weight.bias, x.dtype)
        context = functional.attention(
            qkv.view(x.shape[0], 3, inner.num_attention_heads, inner.attention_head_size),  # type: ignore[call-overload]
            layout.cu_seqlens,
            layout.max_seqlen,
            softmax_scale=inner.scaling,
            causal=inner.is_causal,
            schedule=layout.schedule,
        ).flatten(1)
        if context_weight is None:
            self._record("attention", context)
        y, bias = _left_bias(parts.attention_dense, context, context_weight)
        x, states = _add_norm(parts.attention_norm, y, bias, x, first is not None)

        weight, bias = weights_of(parts.intermediate_dense)
        activation = plan.activation
        assert activation is not None
        assert bias is not None
        if states is not None and first is not None and second is not None:
            states = fp8.linear_activation(*states, first.q, first.scale, bias, activation=activation)
            y, bias = _linear(states, second, None, x.dtype), weights_of(parts.output_dense)[1]
        else:
            if states is None or first is None:
                self._record("intermediate", x)
                h = functional.linear(x, weight, bias, activation=activation)
            else:
                h = activate(_linear(states, first, bias, x.dtype), activation)
            if second is None:
                self._record("output", h)
            y, bias = _left_bias(parts.output_dense, h, second)
        return _add_norm(parts.output_norm, y, bias, x, self.hands_on)

    def describe(self) -> dict[str, tuple[str, str]]:
        """For `explain`: the number format of each product, or "" and why it is not in fp8."""
        return {name: ("", f"not in fp8: {self.fp8_kept[name]}") if name in self.fp8_kept else ("fp8", "") for name in PRODUCTS}

    def _record(self, product: str, states: Tensor) -> None:
        if self.recorder is not None:
            self.recorder(product, states)

    def _refuse(self, plan: LayerPlan, x: Tensor) -> None:
        if self.training:
            raise RuntimeError("fp8 is for inference: expected model.eval(), or fastbert.dequantize(model) to train on")
        if autocast_dtype(x) is not None:
            raise RuntimeError("fp8 runs between products in the states' own dtype: expected a call outside torch.autocast")
        if torch.is_grad_enabled():
            raise RuntimeError("fp8 has no gradients: expected a call inside torch.no_grad() or torch.inference_mode()")
        if plan.layer.path is not Path.FUSED:
            raise RuntimeError(f"a quantised layer runs whole or not at all, but {plan.layer.why}: see fastbert.dequantize")
        if records_portably():
            raise RuntimeError(
                "torch.jit.trace and ONNX have no fp8: expected torch.export or a model from fastbert.dequantize"
            )
        if torch.compiler.is_compiling():
            return
        if (reason := fp8.unsupported_reason(x.device)) is not None:
            raise RuntimeError(reason)
        watched = _versions.get(self, ())
        if any((parameter := ref()) is None or _version(parameter) != version for ref, version in watched):
            raise RuntimeError("a weight has changed since fastbert.quantize: quantize the model again")


def quantize(
    model: Model,
    calibration: Iterable[Mapping[str, Tensor]] | None = None,
    *,
    keep: Collection[str] = (),
    cosine: float | None = None,
) -> Model:
    """Puts the matrix products of every BERT layer inside `model` into fp8, in place, for inference.

    model: in eval mode, of fastbert's classes or accelerated. calibration: batches as the model is called with (input_ids,
        attention_mask, ...), a few thousand tokens of the kind of text to come. Each weight is then rounded so that what the
        product gives on them changes least (GPTQ, Frantar et al. 2023), without them to the nearest number.
        keep: what stays in its own precision, as '3.intermediate' for one product of a layer ('qkv', 'attention',
        'intermediate', 'output'), '3' for a layer, 'output' for a product of every layer. cosine: keep besides what costs most
        accuracy for its work, until the mean hidden state of each calibration sequence, in the mean over them, is expected to
        be at this cosine to what it was.
    Returns model; `fastbert.explain` lists what is in fp8. The original weights stay in place beside the fp8 ones; quantize
    again after changing them.
    Raises TypeError for a model without a fastbert BERT, ValueError for a name in `keep` that fits nothing, a cosine outside
    (0, 1) or one without calibration, RuntimeError for a model in training mode, a device without fp8 products, or a layer
    that has modules of its own kind.
    """
    models = list(berts(model))
    if not models:
        raise TypeError(
            f"quantize: expected a model of fastbert's classes, or fastbert.accelerate(model), got {type(model).__name__}"
        )
    if model.training:
        raise RuntimeError("quantize: expected a model in eval mode, got one in training mode")
    if cosine is not None and (calibration is None or not 0.0 < cosine < 1.0):
        raise ValueError(f"quantize: expected a cosine in (0, 1) together with calibration batches, got {cosine}")
    batches = None if calibration is None else [dict(batch) for batch in calibration]
    for bert in models:
        _check(bert, keep)
    dequantize(model)
    for bert in models:
        layers: list[Any] = list(bert.encoder.layer)
        with torch.no_grad():
            recorded = None if batches is None else _embedded(model, bert, batches)
            states = recorded
            for place, layer in enumerate(layers):
                kept = {name: "kept on request" for name in PRODUCTS if _is_kept(place, name, keep)}
                states = _quantize_layer(layer, kept, states)
            if cosine is not None and recorded is not None:
                _keep_the_costliest(layers, recorded, cosine)
        for layer, following in zip(layers, layers[1:]):
            layer.hands_on = "qkv" in following.fp8
    return model


def dequantize(model: Model) -> Model:
    """The reverse of `quantize`: every product in the model's own precision again, on the original weights."""
    for layer in model.modules():
        if type(layer) is Fp8BertLayer:
            for name in ("fp8_kept", "hands_on", "recorder"):
                layer.__dict__.pop(name, None)
            del layer.fp8
            layer.__class__ = BertLayer
            _versions.pop(layer, None)
    return model


def _quantize_layer(layer: Any, kept: dict[str, str], recorded: "list[_Recorded] | None") -> "list[_Recorded] | None":
    """Makes one layer an fp8 one; its outputs on the recorded inputs are the next layer's."""
    parts = parts_of(layer)
    layer.__class__ = Fp8BertLayer
    layer.fp8 = nn.ModuleDict()
    layer.fp8_kept, layer.hands_on, layer.recorder = kept, False, None
    modules = {
        "qkv": (parts.query, parts.key, parts.value),
        "attention": (parts.attention_dense,),
        "intermediate": (parts.intermediate_dense,),
        "output": (parts.output_dense,),
    }
    copied = []
    for name in PRODUCTS:
        if name in kept:
            continue
        weights, biases = zip(*(weights_of(module) for module in modules[name]))
        own_bias = biases if name == "qkv" and biases[0] is not None else ()
        copied += [*weights, *own_bias]
        weight = torch.cat([weight.detach() for weight in weights]).float()
        bias = torch.cat([bias.detach() for bias in own_bias]) if own_bias else None
        q, scale = fp8.quantize_ref(weight) if recorded is None else round_weight(weight, _moments(layer, name, recorded))
        layer.fp8[name] = Fp8Weight(q, scale[:, 0].contiguous(), bias)
    _versions[layer] = tuple((weakref.ref(parameter), _version(parameter)) for parameter in copied)
    return None if recorded is None else [one.after(layer) for one in recorded]


def _keep_the_costliest(layers: list[Any], recorded: "list[_Recorded]", cosine: float) -> None:
    """Takes products out of fp8 until what the others cost, each alone, adds up to no more than 1 - cosine."""
    found = [layer.fp8 for layer in layers]
    flops = {(place, name): weight.bits.numel() for place, weights in enumerate(found) for name, weight in weights.items()}
    for layer in layers:
        layer.fp8 = nn.ModuleDict()
    before = [_sequence_means(layers, one) for one in recorded]
    damage = {}
    for place, name in flops:
        layers[place].fp8 = nn.ModuleDict({name: found[place][name]})
        cosines = [F.cosine_similarity(_sequence_means(layers, one), mean) for one, mean in zip(recorded, before)]
        damage[place, name] = 1.0 - torch.cat(cosines).mean().item()
        layers[place].fp8 = nn.ModuleDict()
    for layer, weights in zip(layers, found):
        layer.fp8 = weights
    left = sum(damage.values())
    for place, name in sorted(damage, key=lambda product: damage[product] / flops[product], reverse=True):
        if left <= 1.0 - cosine:
            break
        left -= damage[place, name]
        del layers[place].fp8[name]
        layers[place].fp8_kept[name] = f"fp8 would take {damage[place, name]:.1e} off the cosine"


def _sequence_means(layers: list[Any], one: "_Recorded") -> Tensor:
    """The mean of each sequence's last hidden states, (sequences, D) in float32; sequences without tokens left out."""
    for layer in layers:
        one = one.after(layer)
    lengths = one.layout.cu_seqlens.diff().long()
    return torch.segment_reduce(one.x.float(), "mean", lengths=lengths[lengths > 0], unsafe=True)


class _Recorded:
    """The packed states of one calibration batch in front of a layer."""

    def __init__(self, x: Tensor, layout: Layout, causal: bool) -> None:
        self.x, self.layout, self.causal = x, layout, causal

    def after(self, layer: nn.Module) -> "_Recorded":
        plan = plan_layer(layer, self.causal)
        return _Recorded(layer(self.x, packed=self.layout, plan=plan)[0], self.layout, self.causal)


def _embedded(model: nn.Module, bert: BertModel, batches: list[dict[str, Tensor]]) -> list[_Recorded]:
    """The states in front of the first layer, read where the model itself would run it."""
    found: list[_Recorded] = []

    class Recording(BertLayer):
        @takes_packed
        def forward(self, hidden_states, *args, packed=None, plan=None, **kwargs):
            if packed is not None:
                found.append(_Recorded(hidden_states.detach(), packed, bert.config.is_decoder))
            return super().forward(hidden_states, *args, packed=packed, plan=plan, **kwargs)

    first: Any = bert.encoder.layer[0]
    first.__class__ = Recording
    try:
        for batch in batches:
            model(**batch)
    finally:
        first.__class__ = BertLayer
    if not found:
        raise ValueError(
            f"quantize: expected calibration batches that the model runs packed, got {len(batches)} of another kind"
        )
    return found


def _moments(layer: Any, product: str, recorded: list[_Recorded]) -> Moments:
    """Second moments of what the product will read, with the products before it in fp8 already."""
    moments = Moments()

    def record(name: str, states: Tensor) -> None:
        if name == product:
            moments.add(fp8.dequantize(*fp8.quantize_ref(states, GROUP if name == "output" else None)))

    layer.recorder = record
    try:
        for one in recorded:
            one.after(layer)
    finally:
        layer.recorder = None
    return moments


def _check(bert: BertModel, keep: Collection[str]) -> None:
    places = range(len(bert.encoder.layer))
    names = {*PRODUCTS, *map(str, places), *(f"{place}.{name}" for place in places for name in PRODUCTS)}
    unknown = sorted(set(keep) - names)
    if unknown:
        raise ValueError(
            f"quantize: expected names like '3.intermediate', '3' or 'output' to keep, of {len(places)} layers and the "
            f"products {', '.join(PRODUCTS)}, got {', '.join(map(repr, unknown))}"
        )
    unsupported = fp8.unsupported_reason(next(bert.parameters()).device)
    if unsupported is not None:
        raise RuntimeError(f"quantize: {unsupported}")
    for place, layer in enumerate(bert.encoder.layer):
        reason = plan_layer(layer, bert.config.is_decoder).layer.why
        if not reason and type(layer) not in (BertLayer, Fp8BertLayer):
            reason = f"it is a {type(layer).__name__}"
        if not reason:
            parts = parts_of(layer)
            tensors = [tensor for module in layer.modules() for tensor in module.parameters(recurse=False)]
            reason = weights_verdict(*tensors).why
            if weights_of(parts.intermediate_dense)[1] is None:
                reason = "its intermediate Linear has no bias"
        if reason:
            raise RuntimeError(f"quantize: expected layer {place} as transformers builds it, but {reason}")


def _is_kept(place: int, product: str, keep: Collection[str]) -> bool:
    return bool({product, str(place), f"{place}.{product}"} & set(keep))


def _version(parameter: Tensor) -> int:
    """How often the tensor was written; unknown for one made in inference mode."""
    return 0 if parameter.is_inference() else parameter._version


def _linear(states: tuple[Tensor, Tensor], weight: Any, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    return fp8.linear(*states, weight.q, weight.scale, bias, out_dtype=dtype)


def _left_bias(dense: nn.Module, x: Tensor, fp8_weight: Any) -> tuple[Tensor, Tensor | None]:
    """(x @ weight.T in fp8 where there is such a weight, the bias for the layer norm that follows)."""
    weight, bias = weights_of(dense)
    if fp8_weight is None:
        return functional.linear(x, weight), bias
    return _linear(fp8.quantize(x), fp8_weight, None, x.dtype), bias


def _add_norm(
    norm: nn.Module, y: Tensor, bias: Tensor | None, residual: Tensor, quantizes: bool
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """(norm(y + bias + residual), the same in fp8 where the next product wants it)."""
    weight, shift = weights_of(norm)
    assert shift is not None
    if not quantizes:
        return functional.layer_norm(y, weight, shift, residual, x_bias=bias, eps=norm.eps), None  # type: ignore[arg-type]
    x, q, scale = fp8.layer_norm(y, weight, shift, residual, x_bias=bias, eps=norm.eps)  # type: ignore[arg-type]
    return x, (q, scale)
