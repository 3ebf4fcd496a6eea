"""What users would run instead of one operation: PyTorch eager and compiled, its attention kernels one by one, and the
libraries of the field where they are installed.

Each peer takes the operation's own inputs and returns its output; gradients come from autograd.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.harness.arena import Absent
from fastbert.kernels import fp8
from fastbert.kernels.specs.spec import Inputs, OperationSpec

from .compiled import Compilation

Function = Callable[..., Tensor]
MAX_AUTOTUNE = "max-autotune-no-cudagraphs"


def peers(
    spec: OperationSpec, inputs: Inputs, device: torch.device, modes: Sequence[str]
) -> Iterator[tuple[str, Callable[[], Function]]]:
    """(name, how to get the function) of every peer, the baseline first. Getting it raises Absent where there is none."""
    if spec.name == "attention":
        yield from _attention_peers(inputs, device, modes)
        return
    if spec.name == "fp8_linear":
        yield from _fp8_peers(inputs, device, modes)
        return
    reference = labelled_rows(spec.reference) if spec.name == "cross_entropy" else spec.reference
    yield "PyTorch", lambda: reference
    yield "torch.compile", lambda: Compilation("default", modes)(reference)
    yield "torch.compile max-autotune", lambda: Compilation(MAX_AUTOTUNE, modes)(reference)
    if spec.name == "layer_norm":
        yield "Liger-Kernel", lambda: _liger_layer_norm(device)
        yield "quack", lambda: _quack_layer_norm(device)
    if spec.name == "cross_entropy":
        yield "Liger-Kernel", lambda: labelled_rows(_liger_cross_entropy(device))
        yield "cut-cross-entropy", lambda: _cut_cross_entropy(device)


def labelled_rows(function: Function) -> Function:
    """The loss on the labelled rows alone, which is all it needs: a peer at its best does not multiply the others."""

    def of_labelled(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, *, ignore_index: int = -100,
                    **options: Any) -> Tensor:  # fmt: skip
        rows = (labels != ignore_index).nonzero().squeeze(1)
        return function(hidden[rows], weight, bias, labels[rows], ignore_index=ignore_index, **options)

    return of_labelled


# fp8: the same numbers in the states' own dtype, which is what quantising saves over, and PyTorch's own fp8 product.


def _fp8_peers(inputs: Inputs, device: torch.device, modes: Sequence[str]) -> Iterator[tuple[str, Callable[[], Function]]]:
    dtype = inputs["out_dtype"]
    x = fp8.dequantize(inputs["q"], inputs["scale"]).to(dtype)
    weight = fp8.dequantize(inputs["weight_q"], inputs["weight_scale"][:, None]).to(dtype)
    name = str(dtype).removeprefix("torch.")
    yield f"PyTorch, {name}", lambda: lambda **_: F.linear(x, weight, inputs["bias"])
    yield "torch._scaled_mm", lambda: _scaled_mm(device)


def _scaled_mm(device: torch.device) -> Function:
    if device.type != "cuda":
        raise Absent("scales by row exist on GPUs only")

    def function(q: Tensor, scale: Tensor, weight_q: Tensor, weight_scale: Tensor, bias: Tensor, out_dtype: Any) -> Tensor:
        if out_dtype != torch.bfloat16:
            raise Absent("with scales by row it gives bfloat16 only")
        return torch._scaled_mm(
            q, weight_q.t(), scale_a=scale, scale_b=weight_scale[None], bias=bias, out_dtype=out_dtype, use_fast_accum=False
        )

    return function


# Attention: q, k and v in the padded layout that these kernels take; padding is part of what they cost.


class _Padded:
    """The packed batch as (B, H, S, D) views with a mask, made once; a user of these kernels has it in this form."""

    def __init__(self, inputs: Inputs) -> None:
        qkv, cu_seqlens = inputs["qkv"], inputs["cu_seqlens"]
        seqlens = cu_seqlens.diff()
        batch_size, max_seqlen = seqlens.shape[0], int(seqlens.max())
        self.keep = torch.arange(max_seqlen, device=qkv.device) < seqlens[:, None]
        padded = qkv.new_zeros(3, batch_size, max_seqlen, *qkv.shape[2:])
        padded[:, self.keep] = qkv.detach().transpose(0, 1)
        # Three tensors, as three projections give them: the gradient of one for all would be one more copy.
        self.leaves = [part.clone() for part in padded]
        self.mask = None if bool(self.keep.all()) else self.keep[:, None, None, :]
        self.scale = inputs.get("softmax_scale")

    def attend(self, *leaves: Tensor) -> Tensor:
        q, k, v = (leaf.transpose(1, 2) for leaf in leaves)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, scale=self.scale).transpose(1, 2)


def _attention_peers(
    inputs: Inputs, device: torch.device, modes: Sequence[str]
) -> Iterator[tuple[str, Callable[[], Function]]]:
    padded = _Padded(inputs)

    def default() -> Function:
        return _on_padded(padded, padded.attend)

    def forced(backend: SDPBackend) -> Function:
        if device.type != "cuda":
            raise Absent("a choice of attention kernels exists on GPUs only")
        if backend == SDPBackend.FLASH_ATTENTION and padded.mask is not None:
            raise Absent("takes no mask, and the lengths differ")

        def attend(*leaves: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                return padded.attend(*leaves)

        return _on_padded(padded, attend)

    yield "SDPA", default
    yield "SDPA, flash", lambda: forced(SDPBackend.FLASH_ATTENTION)
    yield "SDPA, cuDNN", lambda: forced(SDPBackend.CUDNN_ATTENTION)
    yield "SDPA, memory-efficient", lambda: forced(SDPBackend.EFFICIENT_ATTENTION)
    yield "SDPA, torch.compile", lambda: _on_padded(padded, Compilation("default", modes)(padded.attend))
    yield "PyTorch varlen_attn", lambda: _varlen_attn(inputs, device)
    yield "flash-attn, varlen", lambda: _flash_attn_varlen(device)


def _on_padded(padded: _Padded, attend: Callable[..., Tensor]) -> Function:
    def function(**_: Any) -> Tensor:
        return attend(*padded.leaves)

    function.leaves = padded.leaves  # type: ignore[attr-defined]  # what a backward differentiates by
    function.compilation = getattr(attend, "compilation", None)  # type: ignore[attr-defined]
    function.keep = padded.keep  # type: ignore[attr-defined]  # which positions of the output count
    return function


def _varlen_attn(inputs: Inputs, device: torch.device) -> Function:
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        raise Absent(f"PyTorch {torch.__version__} has none")
    if device.type != "cuda":
        raise Absent("runs on CUDA only")
    from torch.nn.attention.varlen import varlen_attn

    leaves = [part.clone() for part in inputs["qkv"].detach().unbind(1)]

    def function(cu_seqlens: Tensor, max_seqlen: int, **_: Any) -> Tensor:
        return varlen_attn(*leaves, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)

    function.leaves = leaves  # type: ignore[attr-defined]
    return function


def _flash_attn_varlen(device: torch.device) -> Function:
    _need("flash_attn", device)
    from flash_attn import flash_attn_varlen_qkvpacked_func

    def function(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, softmax_scale: float | None = None, **_: Any) -> Tensor:
        return flash_attn_varlen_qkvpacked_func(qkv, cu_seqlens, max_seqlen, softmax_scale=softmax_scale, deterministic=True)

    return function


# Libraries of fused operations.


def _liger_layer_norm(device: torch.device) -> Function:
    _need("liger_kernel", device)
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction

    def function(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, *, x_bias: Tensor | None = None,
                 eps: float = 1e-12, **_: Any) -> Tensor:  # fmt: skip
        x = x if x_bias is None else x + x_bias
        return LigerLayerNormFunction.apply(x if residual is None else x + residual, weight, bias, eps)

    return function


def _quack_layer_norm(device: torch.device) -> Function:
    _need("quack", device)
    from quack.rmsnorm import layernorm_fwd

    def function(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, *, x_bias: Tensor | None = None,
                 eps: float = 1e-12, **_: Any) -> Tensor:  # fmt: skip
        x = x if x_bias is None else x + x_bias
        return layernorm_fwd(x if residual is None else x + residual, weight.float(), bias.float(), eps)

    return function


def _liger_cross_entropy(device: torch.device) -> Function:
    _need("liger_kernel", device)
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    def function(
        hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, *, ignore_index: int = -100, **_: Any
    ) -> Tensor:
        return LigerFusedLinearCrossEntropyFunction.apply(hidden, weight, labels, bias, None, ignore_index)[0]

    return function


def _cut_cross_entropy(device: torch.device) -> Function:
    _need("cut_cross_entropy", device)
    from cut_cross_entropy import linear_cross_entropy

    def function(
        hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, *, ignore_index: int = -100, **_: Any
    ) -> Tensor:
        return linear_cross_entropy(hidden, weight, labels, bias=bias, ignore_index=ignore_index)

    return function


def _need(module: str, device: torch.device) -> None:
    if importlib.util.find_spec(module) is None:
        raise Absent(f"{module} is not installed")
    if device.type != "cuda":
        raise Absent(f"{module} needs a GPU")
