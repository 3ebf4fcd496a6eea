"""What fp8 products read in calibration batches, and what each of them costs in accuracy."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastbert.deploy.fp8_layer import Fp8BertLayer
from fastbert.deploy.gptq import Moments
from fastbert.kernels import fp8
from fastbert.kernels.fp8_format import GROUP
from fastbert.model.bert import BertModel
from fastbert.model.fallback.plan import plan_layer
from fastbert.model.layer import BertLayer, takes_packed
from fastbert.model.padding.layout import Layout


class Recorded:
    """The packed states of one calibration batch in front of a layer. x: (R, D). causal: whether the model masks the future."""

    def __init__(self, x: Tensor, layout: Layout, causal: bool) -> None:
        self.x, self.layout, self.causal = x, layout, causal

    def after(self, layer: nn.Module) -> "Recorded":
        """The states behind the layer."""
        plan = plan_layer(layer, self.causal)
        return Recorded(layer(self.x, packed=self.layout, plan=plan)[0], self.layout, self.causal)


def record_embedded(model: nn.Module, bert: BertModel, batches: list[dict[str, Tensor]]) -> list[Recorded]:
    """The states in front of the first layer of `bert`, recorded in calls of `model`.

    Raises ValueError where no batch is run packed.
    """
    recorded: list[Recorded] = []

    class RecordingLayer(BertLayer):
        @takes_packed
        def forward(self, hidden_states: Tensor, *args: Any, packed: Layout | None = None, **kwargs: Any) -> Any:
            if packed is not None:
                recorded.append(Recorded(hidden_states.detach(), packed, bert.config.is_decoder))
            return super().forward(hidden_states, *args, packed=packed, **kwargs)

    first: Any = bert.encoder.layer[0]
    first.__class__ = RecordingLayer
    try:
        for batch in batches:
            model(**batch)
    finally:
        first.__class__ = BertLayer
    if not recorded:
        raise ValueError(
            f"quantize: expected calibration batches that the model runs packed, got {len(batches)} of another kind"
        )
    return recorded


def moments_of(layer: Fp8BertLayer, product: str, recorded: list[Recorded]) -> Moments:
    """Second moments of the input of a product that is not in fp8 yet, with the products before it in fp8."""
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


def keep_costliest(layers: list[Any], recorded: list[Recorded], cosine: float) -> None:
    """Takes products out of fp8 until the sum of what each of the others costs alone is at most 1 - cosine.

    Those that cost most for their arithmetic are taken out first.
    """
    weights = [layer.fp8 for layer in layers]
    flops = {(i, name): weight.bits.numel() for i, of_layer in enumerate(weights) for name, weight in of_layer.items()}
    for layer in layers:
        layer.fp8 = nn.ModuleDict()
    exact = [_sequence_means(layers, one) for one in recorded]
    costs = {}
    for i, name in flops:
        layers[i].fp8 = nn.ModuleDict({name: weights[i][name]})
        cosines = [F.cosine_similarity(_sequence_means(layers, one), mean) for one, mean in zip(recorded, exact)]
        costs[i, name] = 1.0 - torch.cat(cosines).mean().item()
        layers[i].fp8 = nn.ModuleDict()
    for layer, of_layer in zip(layers, weights):
        layer.fp8 = of_layer
    remaining = sum(costs.values())
    for i, name in sorted(costs, key=lambda product: costs[product] / flops[product], reverse=True):
        if remaining <= 1.0 - cosine:
            break
        remaining -= costs[i, name]
        del layers[i].fp8[name]
        layers[i].fp8_kept[name] = f"fp8 would take {costs[i, name]:.1e} off the cosine"


def _sequence_means(layers: list[Any], one: Recorded) -> Tensor:
    """The mean of each sequence's last hidden states, (sequences, D) in float32, without empty sequences."""
    for layer in layers:
        one = one.after(layer)
    lengths = one.layout.cu_seqlens.diff().long()
    return torch.segment_reduce(one.x.float(), "mean", lengths=lengths[lengths > 0], unsafe=True)
