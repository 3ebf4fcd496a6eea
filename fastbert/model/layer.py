"""One BERT layer on packed rows, post-norm as in Devlin et al. 2019: attention, then the feed-forward, each added and normed.

R rows of the batch (see `layout`), D hidden size, H heads, I intermediate size. Wherever a module is not what transformers
builds (a LoRA adapter, a hooked norm), `fallback` says so in the layer's plan, and that module is called on the rows instead
of a fused operation. The transform in front of the vocabulary projection, built of the same operations, is here too.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.bert import modeling_bert as hf

from fastbert.kernels import functional, resolve_backend
from fastbert.kernels.backend import autocast_dtype
from fastbert.kernels.dropout import new_seed
from fastbert.model.fallback.activations import fused_activation
from fastbert.model.fallback.parts import LayerParts, parts_of, weights_of
from fastbert.model.fallback.plan import LayerPlan, transform_verdict
from fastbert.model.fallback.verdict import Path, Verdict, weights_verdict
from fastbert.model.padding.layout import Layout
from fastbert.model.registry import replaces

# Random streams of one layer: which of its operations a dropout mask belongs to.
ATTENTION_STREAM, ATTENTION_OUTPUT_STREAM, OUTPUT_STREAM = range(3)

Quantized = tuple[Tensor, Tensor]  # hidden states in fp8: float8_e4m3fn (R, D), and their float32 scales
Forward = TypeVar("Forward", bound=Callable[..., Any])


def takes_packed(forward: Forward) -> Forward:
    """Marks a layer's forward as one for packed rows. A subclass that overrides it without the mark is called on padded
    states, as transformers would."""
    forward.__dict__["takes_packed"] = True
    return forward


@replaces(hf.BertLayer)
class BertLayer(hf.BertLayer):
    """transformers' BertLayer with the same state; on packed rows norm(x + sublayer(x)), twice."""

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
        """As in transformers without packed and plan, which `BertModel` passes together.

        With them hidden_states is (R, D), quantized its fp8 form where the layer before computed one, and the result the pair
        (hidden states, their fp8 form or None).
        """
        if packed is None or plan is None:
            return super().forward(hidden_states, attention_mask, *args, **kwargs)
        x, layout, parts = hidden_states, packed.to(hidden_states.device), parts_of(self)  # x: (R, D)
        attention: Any = parts.self_attention
        on_kernels = resolve_backend(x) == "triton"
        attention_p = parts.attention_dropout.p if attention.training and type(parts.attention_dropout) is nn.Dropout else 0.0
        hidden_p, output_p = dropout_p_of(parts.hidden_dropout), dropout_p_of(parts.output_dropout)
        # Drawn here, so that a recomputation under gradient checkpointing draws the same.
        seed = new_seed(x.device) if on_kernels and max(attention_p, hidden_p, output_p) > 0.0 else None

        qkv = self._project_qkv(parts, plan, x, quantized)  # (R, 3 * D)
        context = functional.attention(  # (R, H, D / H)
            qkv.view(x.shape[0], 3, attention.num_attention_heads, attention.attention_head_size),
            layout.cu_seqlens,
            layout.max_seqlen,
            softmax_scale=attention.scaling,
            causal=attention.is_causal,
            dropout_p=attention_p,
            seed=seed,
            stream=ATTENTION_STREAM,
            schedule=layout.schedule,
        )
        x, quantized = self._attention_output(parts, plan, context.flatten(1), x, hidden_p, seed, on_kernels)  # (R, D)
        return self._feed_forward(parts, plan, x, quantized, output_p, seed, on_kernels)  # (R, D)

    # The products of a layer, each with what is fused to it; fp8 overrides them.

    def _project_qkv(self, parts: LayerParts, plan: LayerPlan, x: Tensor, quantized: Quantized | None) -> Tensor:
        """Query, key and value side by side: (R, D) -> (R, 3 * D)."""
        projections = (parts.query, parts.key, parts.value)
        if plan.qkv.path is Path.FUSED:
            weights, biases = zip(*map(weights_of, projections))
            if weights_readable(x, *weights, *biases):
                return functional.qkv_linear(x, weights, biases)
        return torch.cat([projection(x) for projection in projections], -1)

    def _attention_output(
        self,
        parts: LayerParts,
        plan: LayerPlan,
        context: Tensor,
        residual: Tensor,
        dropout_p: float,
        seed: Tensor | None,
        on_kernels: bool,
    ) -> tuple[Tensor, Quantized | None]:
        """norm(residual + dropout(context @ weight.T + bias)), (R, D), and its fp8 form for the feed-forward."""
        y, bias = _linear(parts.attention_dense, context, plan.attention_dense, on_kernels)
        norm = parts.attention_norm
        return _add_norm(norm, y, bias, residual, dropout_p, seed, ATTENTION_OUTPUT_STREAM, plan.attention_norm), None

    def _feed_forward(
        self,
        parts: LayerParts,
        plan: LayerPlan,
        x: Tensor,
        quantized: Quantized | None,
        dropout_p: float,
        seed: Tensor | None,
        on_kernels: bool,
    ) -> tuple[Tensor, Quantized | None]:
        """norm(x + dropout(activation(x @ w_in.T + b_in) @ w_out.T + b_out)), (R, D), and its fp8 form for the next layer."""
        y, bias = _two_linears(parts, plan, x, on_kernels)
        return _add_norm(parts.output_norm, y, bias, x, dropout_p, seed, OUTPUT_STREAM, plan.output_norm), None


@replaces(hf.BertPredictionHeadTransform)
class BertPredictionHeadTransform(hf.BertPredictionHeadTransform):
    """The dense layer, activation and norm before the vocabulary projection."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        if transform_verdict(self).path is Path.FUSED:
            weight, bias = weights_of(self.dense)
            norm_weight, norm_bias = weights_of(self.LayerNorm)
            if weights_readable(hidden_states, weight, bias) and weights_verdict(norm_weight, norm_bias).path is Path.FUSED:
                activation = fused_activation(self.transform_act_fn)
                y = functional.linear(hidden_states, weight, bias, activation=activation)
                return functional.layer_norm(y, norm_weight, norm_bias, eps=self.LayerNorm.eps)
        return super().forward(hidden_states)


def dropout_p_of(dropout: nn.Module) -> float:
    return dropout.p if dropout.training and isinstance(dropout, nn.Dropout) else 0.0


def weights_readable(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether an operation on x may read these weights: autocast brings dtypes together, else they must be that of x."""
    return weights_verdict(*weights, dtype=x.dtype if autocast_dtype(x) is None else None).path is Path.FUSED


def _linear(dense: nn.Module, x: Tensor, verdict: Verdict, leave_bias: bool) -> tuple[Tensor, Tensor | None]:
    """(product, the bias left for the layer norm that follows, or None where it is in the product already)."""
    if verdict.path is not Path.FUSED:
        return dense(x), None
    weight, bias = weights_of(dense)
    if not weights_readable(x, weight, bias):
        return dense(x), None
    return functional.linear(x, weight, None if leave_bias else bias), bias if leave_bias else None


def _two_linears(parts: LayerParts, plan: LayerPlan, x: Tensor, leave_bias: bool) -> tuple[Tensor, Tensor | None]:
    """activation(x @ w_in.T + b_in) @ w_out.T, (R, D), and the bias left for the layer norm as in `_linear`."""
    first, second = parts.intermediate_dense, parts.output_dense
    if plan.intermediate.path is Path.FUSED:
        weight, bias = weights_of(first)
        if weights_readable(x, weight, bias):
            if leave_bias and bias is not None and plan.output_dense.path is Path.FUSED:
                weight_out, bias_out = weights_of(second)
                if weights_readable(x, weight_out, bias_out):
                    return functional.feed_forward(x, weight, bias, weight_out, activation=plan.activation), bias_out
            h = functional.linear(x, weight, bias, activation=plan.activation)  # (R, I)
            return _linear(second, h, plan.output_dense, leave_bias)
    return _linear(second, parts.activation(first(x)), plan.output_dense, leave_bias)


def _add_norm(
    norm: nn.Module,
    y: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    dropout_p: float,
    seed: Tensor | None,
    stream: int,
    verdict: Verdict,
) -> Tensor:
    """norm(dropout(y + bias) + residual), (R, D)."""
    if verdict.path is Path.FUSED:
        weight, shift = weights_of(norm)
        if weights_verdict(weight, shift).path is Path.FUSED:
            return functional.layer_norm(
                y, weight, shift, residual, x_bias=bias, eps=norm.eps, dropout_p=dropout_p, seed=seed, stream=stream
            )
    y = y if bias is None else y + bias
    return norm(F.dropout(y, dropout_p, training=dropout_p > 0.0) + residual)
