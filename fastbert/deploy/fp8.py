"""`quantize` and `dequantize`: inference with the four products of each layer in fp8 (e4m3). Off by default.

The fp8 weights are kept beside the modules' own, so that checkpoints, `dequantize` and calls that fall back to transformers see
the original ones.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastbert.deploy.fp8_calibration import Recorded, keep_costliest, moments_of, record_embedded
from fastbert.deploy.fp8_layer import PRODUCTS, Fp8BertLayer, Fp8Weight, begin_fp8, remember_copied
from fastbert.deploy.gptq import round_weight
from fastbert.kernels import fp8
from fastbert.model.bert import BertModel, berts
from fastbert.model.fallback.parts import parts_of, weights_of
from fastbert.model.fallback.plan import plan_layer
from fastbert.model.fallback.verdict import weights_verdict
from fastbert.model.layer import BertLayer

Model = TypeVar("Model", bound=nn.Module)


def quantize(
    model: Model,
    calibration: Iterable[Mapping[str, Tensor]] | None = None,
    *,
    keep: Collection[str] = (),
    cosine: float | None = None,
) -> Model:
    """Puts the matrix products of every BERT layer inside `model` into fp8, in place, for inference.

    model: in eval mode, of fastbert's classes or accelerated.
    calibration: batches that the model is called with (input_ids, attention_mask, ...), a few thousand tokens of the kind of
        text to come. Each weight is then rounded so that its product on them changes least (GPTQ, Frantar et al. 2023);
        without calibration, to the nearest number.
    keep: products that stay in the model's precision, as '3.intermediate' for one product of a layer ('qkv', 'attention',
        'intermediate', 'output'), '3' for a layer, 'output' for a product of every layer.
    cosine: keep also the products that cost most accuracy for their work, until the mean hidden state of each calibration
        sequence is expected to have, on average, this cosine similarity to what it was.
    Returns model; `fastbert.explain` lists what is in fp8. The original weights stay beside the fp8 ones; quantize again after
    changing them.
    Raises TypeError for a model without a fastbert BERT, ValueError for a name in `keep` that fits nothing, a cosine outside
    (0, 1) or one without calibration, RuntimeError for a model in training mode, a device without fp8 products, or a layer
    that is not as transformers builds it.
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
            recorded = None if batches is None else record_embedded(model, bert, batches)
            states = recorded
            for i, layer in enumerate(layers):
                kept = {name: "kept on request" for name in PRODUCTS if _is_kept(i, name, keep)}
                states = _quantize_layer(layer, kept, states)
            if cosine is not None and recorded is not None:
                keep_costliest(layers, recorded, cosine)
        for layer, following in zip(layers, layers[1:]):
            layer.quantizes_output = "qkv" in following.fp8
    return model


def dequantize(model: Model) -> Model:
    """The reverse of `quantize`: every product in the model's own precision again, on the original weights."""
    for layer in list(model.modules()):
        if isinstance(layer, Fp8BertLayer):
            layer.unswap()
    return model


def _quantize_layer(layer: Any, kept: dict[str, str], recorded: list[Recorded] | None) -> list[Recorded] | None:
    """Puts the products of one layer into fp8; returns its outputs for the recorded inputs."""
    parts = parts_of(layer)
    begin_fp8(layer, kept)
    modules = {
        "qkv": (parts.query, parts.key, parts.value),
        "attention": (parts.attention_dense,),
        "intermediate": (parts.intermediate_dense,),
        "output": (parts.output_dense,),
    }
    copied: list[Tensor] = []
    for name in PRODUCTS:
        if name in kept:
            continue
        weights, biases = zip(*(weights_of(module) for module in modules[name]))
        own_biases = biases if name == "qkv" and biases[0] is not None else ()
        copied += [*weights, *own_biases]
        weight = torch.cat([weight.detach() for weight in weights]).float()  # (N, K)
        bias = torch.cat([bias.detach() for bias in own_biases]) if own_biases else None  # (N,)
        q, scale = fp8.quantize_ref(weight) if recorded is None else round_weight(weight, moments_of(layer, name, recorded))
        layer.fp8[name] = Fp8Weight(q, scale[:, 0].contiguous(), bias)
    remember_copied(layer, copied)
    return None if recorded is None else [one.after(layer) for one in recorded]


def _check(bert: BertModel, keep: Collection[str]) -> None:
    indices = range(len(bert.encoder.layer))
    names = {*PRODUCTS, *map(str, indices), *(f"{i}.{name}" for i in indices for name in PRODUCTS)}
    unknown = sorted(set(keep) - names)
    if unknown:
        raise ValueError(
            f"quantize: expected names like '3.intermediate', '3' or 'output' to keep, of {len(indices)} layers and the "
            f"products {', '.join(PRODUCTS)}, got {', '.join(map(repr, unknown))}"
        )
    unsupported = fp8.unsupported_reason(next(bert.parameters()).device)
    if unsupported is not None:
        raise RuntimeError(f"quantize: {unsupported}")
    for i, layer in enumerate(bert.encoder.layer):
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
            raise RuntimeError(f"quantize: expected layer {i} as transformers builds it, but {reason}")


def _is_kept(layer: int, product: str, keep: Collection[str]) -> bool:
    return bool({product, str(layer), f"{layer}.{product}"} & set(keep))
