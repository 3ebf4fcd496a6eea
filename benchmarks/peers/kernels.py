"""What users would run instead of one operation: PyTorch eager and compiled, and the libraries of the field where installed.

Each peer takes the operation's own inputs and returns its output; gradients come from autograd. PyTorch's part comes from the
operation's spec, so that an operation without libraries needs nothing here.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.harness.arena import Absent
from fastbert.kernels.limits import IGNORE_INDEX
from fastbert.kernels.specs.baselines import on_labelled_rows
from fastbert.kernels.specs.spec import Inputs, OperationSpec, PeerCall

from .compiled import Compilation
from .libraries import need_on_gpu

Function = Callable[..., Tensor]
Build = Callable[[], PeerCall]  # raises Absent where there is nothing to run
MODES = {"torch.compile": "default", "torch.compile max-autotune": "max-autotune-no-cudagraphs"}


def peers(spec: OperationSpec, inputs: Inputs, device: torch.device, modes: Sequence[str]) -> Iterator[tuple[str, Build]]:
    """(name, how to build it) of every peer, the baseline first. modes: torch.compile's that take part."""
    baseline = spec.build_baseline(inputs)

    def compiled(mode: str) -> PeerCall:
        compilation = Compilation(mode, modes)
        return replace(baseline, function=compilation(baseline.function), proof=compilation.proof)

    yield baseline.name, lambda: baseline
    for name, mode in MODES.items():
        yield name if baseline.name == "PyTorch" else f"{baseline.name}, {name}", lambda mode=mode: compiled(mode)
    for name, library in LIBRARIES.get(spec.name, {}).items():
        yield name, lambda library=library: library(inputs, baseline, device)


# Attention: PyTorch's attention kernels one by one, and flash-attn on packed tokens.


def _sdpa_by(backend: SDPBackend) -> "Library":
    def build(inputs: Inputs, baseline: PeerCall, device: torch.device) -> PeerCall:
        if device.type != "cuda":
            raise Absent("a choice of attention kernels exists on GPUs only")
        if backend == SDPBackend.FLASH_ATTENTION and baseline.inputs["mask"] is not None:
            raise Absent("takes no mask, and the lengths differ")

        def attend(**arguments: Any) -> Tensor:
            with sdpa_kernel(backend):
                return baseline.function(**arguments)

        return replace(baseline, function=attend)

    return build


def _varlen_attn(inputs: Inputs, baseline: PeerCall, device: torch.device) -> PeerCall:
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        raise Absent(f"PyTorch {torch.__version__} has none")
    if device.type != "cuda":
        raise Absent("runs on CUDA only")
    from torch.nn.attention.varlen import varlen_attn

    leaves = tuple(part.clone() for part in inputs["qkv"].detach().unbind(1))
    cu_seqlens, max_seqlen = inputs["cu_seqlens"], inputs["max_seqlen"]
    return PeerCall(lambda: varlen_attn(*leaves, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen), {}, leaves=leaves)


def _flash_attn_varlen(inputs: Inputs, baseline: PeerCall, device: torch.device) -> PeerCall:
    need_on_gpu("flash_attn", device)
    from flash_attn import flash_attn_varlen_qkvpacked_func

    def function(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, softmax_scale: float | None = None) -> Tensor:
        return flash_attn_varlen_qkvpacked_func(qkv, cu_seqlens, max_seqlen, softmax_scale=softmax_scale, deterministic=True)

    names = ("qkv", "cu_seqlens", "max_seqlen", "softmax_scale")
    return PeerCall(function, {name: inputs[name] for name in names if name in inputs})


# fp8: PyTorch's own fp8 product.


def _scaled_mm(inputs: Inputs, baseline: PeerCall, device: torch.device) -> PeerCall:
    if device.type != "cuda":
        raise Absent("scales by row exist on GPUs only")
    if inputs["out_dtype"] != torch.bfloat16:
        raise Absent("with scales by row it gives bfloat16 only")

    def function(q: Tensor, scale: Tensor, weight_q: Tensor, weight_scale: Tensor, bias: Tensor, out_dtype: Any) -> Tensor:
        return torch._scaled_mm(
            q, weight_q.t(), scale_a=scale, scale_b=weight_scale[None], bias=bias, out_dtype=out_dtype, use_fast_accum=False
        )

    return PeerCall(function, inputs)


# Layer norm and cross-entropy: libraries of fused operations.


def _liger_layer_norm(inputs: Inputs, baseline: PeerCall, device: torch.device) -> PeerCall:
    need_on_gpu("liger_kernel", device)
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction

    return PeerCall(_on_sum(LigerLayerNormFunction.apply), baseline.inputs)


def _quack_layer_norm(inputs: Inputs, baseline: PeerCall, device: torch.device) -> PeerCall:
    need_on_gpu("quack", device)
    from quack.rmsnorm import layernorm_fwd

    def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return layernorm_fwd(x, weight.float(), bias.float(), eps)

    return PeerCall(_on_sum(norm), baseline.inputs)


def _on_sum(norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> Function:
    """The norm of x + x_bias + residual, which these libraries leave to PyTorch."""

    def function(
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None = None,
        *,
        x_bias: Tensor | None = None,
        eps: float = 1e-12,
        **_: Any,
    ) -> Tensor:
        x = x if x_bias is None else x + x_bias
        return norm(x if residual is None else x + residual, weight, bias, eps)

    return function


def _liger_cross_entropy(inputs: Inputs, baseline: PeerCall, device: torch.device) -> PeerCall:
    need_on_gpu("liger_kernel", device)
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    def function(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, *, ignore_index: int, **_: Any) -> Tensor:
        return LigerFusedLinearCrossEntropyFunction.apply(hidden, weight, labels, bias, None, ignore_index)[0]

    return PeerCall(on_labelled_rows(function), baseline.inputs)


def _cut_cross_entropy(inputs: Inputs, baseline: PeerCall, device: torch.device) -> PeerCall:
    need_on_gpu("cut_cross_entropy", device)
    from cut_cross_entropy import linear_cross_entropy

    def function(
        hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, *, ignore_index: int = IGNORE_INDEX, **_: Any
    ) -> Tensor:
        return linear_cross_entropy(hidden, weight, labels, bias=bias, ignore_index=ignore_index)

    return PeerCall(function, baseline.inputs)


Library = Callable[[Inputs, PeerCall, torch.device], PeerCall]  # (inputs, baseline, device)
LIBRARIES: Mapping[str, Mapping[str, Library]] = {
    "attention": {
        "SDPA, flash": _sdpa_by(SDPBackend.FLASH_ATTENTION),
        "SDPA, cuDNN": _sdpa_by(SDPBackend.CUDNN_ATTENTION),
        "SDPA, memory-efficient": _sdpa_by(SDPBackend.EFFICIENT_ATTENTION),
        "PyTorch varlen_attn": _varlen_attn,
        "flash-attn, varlen": _flash_attn_varlen,
    },
    "layer_norm": {"Liger-Kernel": _liger_layer_norm, "quack": _quack_layer_norm},
    "cross_entropy": {"Liger-Kernel": _liger_cross_entropy, "cut-cross-entropy": _cut_cross_entropy},
    "fp8_linear": {"torch._scaled_mm": _scaled_mm},
}
