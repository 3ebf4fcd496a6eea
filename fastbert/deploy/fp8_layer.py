"""A BERT layer with matrix products in fp8 (e4m3), for inference.

States between products are quantised where they are computed: in the layer norm and in the activation's epilogue. Attention's
output is quantised in a separate pass.

R rows of a packed batch, D hidden size, I intermediate size.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastbert.kernels import fp8, functional
from fastbert.kernels.backend import autocast_dtype, records_portably
from fastbert.kernels.fp8_format import E4M3
from fastbert.model import calls
from fastbert.model.fallback.parts import LayerParts, weights_of
from fastbert.model.fallback.plan import LayerPlan
from fastbert.model.fallback.verdict import Path
from fastbert.model.layer import BertLayer, Quantized, takes_packed
from fastbert.model.padding.layout import Layout

PRODUCTS = ("qkv", "attention", "intermediate", "output")  # of a layer, in the order they run
ORIGINAL_WEIGHTS = (
    "a quantised layer ran on its original weights, since the call falls back to transformers: see fastbert.explain"
)
Recorder = Callable[[str, Tensor], None]  # called with each product that is not in fp8, and with its input
# The parameters whose values an fp8 layer copied, and how often each had been written then.
_copied: "weakref.WeakKeyDictionary[nn.Module, tuple[tuple[weakref.ref, int], ...]]" = weakref.WeakKeyDictionary()


class Fp8Weight(nn.Module):
    """A weight in fp8 with a scale per row, whose buffers are integers, which `.to(dtype)` leaves alone."""

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
    """A BertLayer that computes the products in its module `fp8` in that format. `begin_fp8` converts a layer in place.

    A call that falls back to transformers warns and runs on the original weights.
    """

    fp8: nn.ModuleDict  # product -> Fp8Weight
    fp8_kept: dict[str, str]  # product -> why it is not in fp8
    quantizes_output: bool  # whether the next layer's first product is in fp8
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
        else:
            self._check_call(plan, hidden_states)
        return super().forward(hidden_states, attention_mask, *args, packed=packed, plan=plan, quantized=quantized, **kwargs)

    def describe(self) -> dict[str, tuple[str, str]]:
        """For `explain`, each product's (number format, "") or ("", why it is not in fp8)."""
        kept = self.fp8_kept
        return {name: ("", f"not in fp8: {kept[name]}") if name in kept else ("fp8", "") for name in PRODUCTS}

    def unswap(self) -> None:
        """Turns the layer back into a BertLayer on its original weights."""
        for name in ("fp8_kept", "quantizes_output", "recorder"):
            self.__dict__.pop(name, None)
        del self.fp8
        self.__class__ = BertLayer
        _copied.pop(self, None)

    def _project_qkv(self, parts: LayerParts, plan: LayerPlan, x: Tensor, quantized: Quantized | None) -> Tensor:
        weight = self._weight("qkv")
        if weight is None:
            self._record("qkv", x)
            return super()._project_qkv(parts, plan, x, quantized)
        return _linear(quantized or fp8.quantize(x), weight, weight.bias, x.dtype)  # (R, 3 * D)

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
        weight = self._weight("attention")
        if weight is None:
            self._record("attention", context)
        y, bias = _product(parts.attention_dense, context, weight)  # (R, D)
        return _add_norm(parts.attention_norm, y, bias, residual, self._weight("intermediate") is not None)

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
        first, second, activation = self._weight("intermediate"), self._weight("output"), plan.activation
        weight_in, bias_in = weights_of(parts.intermediate_dense)
        assert activation is not None
        assert bias_in is not None
        if first is not None and second is not None and quantized is not None:
            h = fp8.linear_activation(*quantized, first.q, first.scale, bias_in, activation=activation)  # (R, I)
            y, bias = _linear(h, second, None, x.dtype), weights_of(parts.output_dense)[1]  # (R, D)
        else:
            if first is not None and quantized is not None:
                wide = _linear(quantized, first, bias_in, x.dtype, activation)  # (R, I)
            else:
                self._record("intermediate", x)
                wide = functional.linear(x, weight_in, bias_in, activation=activation)  # (R, I)
            if second is None:
                self._record("output", wide)
            y, bias = _product(parts.output_dense, wide, second)  # (R, D)
        return _add_norm(parts.output_norm, y, bias, x, self.quantizes_output)

    def _weight(self, product: str) -> Any:
        """The product's Fp8Weight, or None."""
        weights: Any = self._modules["fp8"]
        return weights._modules.get(product)

    def _record(self, product: str, states: Tensor) -> None:
        if self.recorder is not None:
            self.recorder(product, states)

    def _check_call(self, plan: LayerPlan, x: Tensor) -> None:
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
        copied = _copied.get(self, ())
        if any((parameter := ref()) is None or _version(parameter) != version for ref, version in copied):
            raise RuntimeError("a weight has changed since fastbert.quantize: quantize the model again")


def begin_fp8(layer: Any, kept: dict[str, str]) -> None:
    """Turns a BertLayer, in place, into an Fp8BertLayer without weights in fp8 yet. kept: what will not be, and why."""
    layer.__class__ = Fp8BertLayer
    layer.fp8 = nn.ModuleDict()
    layer.fp8_kept, layer.quantizes_output, layer.recorder = kept, False, None


def remember_copied(layer: nn.Module, parameters: list[Tensor]) -> None:
    """From now on the layer refuses to run once one of these parameters, the sources of its fp8 weights, is written."""
    _copied[layer] = tuple((weakref.ref(parameter), _version(parameter)) for parameter in parameters)


def _version(parameter: Tensor) -> int:
    """How often the tensor was written; 0 for one created in inference mode, where writes are not counted."""
    return 0 if parameter.is_inference() else parameter._version


def _linear(states: Quantized, weight: Any, bias: Tensor | None, dtype: torch.dtype, activation: str | None = None) -> Tensor:
    return fp8.linear(*states, weight.q, weight.scale, bias, activation=activation, out_dtype=dtype)


def _product(dense: nn.Module, x: Tensor, fp8_weight: Any) -> tuple[Tensor, Tensor | None]:
    """(x @ weight.T, in fp8 where there is such a weight; the bias, left for the layer norm that follows)."""
    weight, bias = weights_of(dense)
    if fp8_weight is None:
        return functional.linear(x, weight), bias
    return _linear(fp8.quantize(x), fp8_weight, None, x.dtype), bias


def _add_norm(norm: Any, y: Tensor, bias: Tensor | None, residual: Tensor, quantizes: bool) -> tuple[Tensor, Quantized | None]:
    """(norm(y + bias + residual), its fp8 form where the next product reads it)."""
    weight, shift = weights_of(norm)
    assert shift is not None
    if not quantizes:
        return functional.layer_norm(y, weight, shift, residual, x_bias=bias, eps=norm.eps), None
    x, q, scale = fp8.layer_norm(y, weight, shift, residual, x_bias=bias, eps=norm.eps)
    return x, (q, scale)
