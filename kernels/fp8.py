"""Inference in 8-bit floating point (e4m3, Micikevicius et al. 2022): the operations and their emulation. Imports no Triton.

A quantised tensor is a pair (q, scale) with x ≈ q * scale: q in float8_e4m3fn, one float32 scale per row, or per row and group
of `GROUP` columns. A scale maps the largest magnitude under it to 448, the largest number of the format. Products accumulate in
float32. On a GPU with fp8 matrix units (NVIDIA, compute capability 8.9 and newer) each function is a kernel. On a CPU it is
emulated in float32, and results differ in the order of sums only. No operation here has a gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference
from .backend import KERNEL_DTYPES, resolve_backend
from .device import too_old_reason
from .fp8_format import E4M3, GROUP, LARGEST, MIN_COMPUTE_CAPABILITY, SMALLEST, num_groups
from .limits import ACTIVATIONS


def unsupported_reason(device: torch.device) -> str | None:
    """Why fp8 products cannot run on this device, or None where they can. A CPU emulates them."""
    if device.type == "cpu":
        return None
    if device.type != "cuda" or torch.version.hip is not None:
        return "fp8 here is NVIDIA's e4m3; other devices have none, or another format"
    return too_old_reason(device, MIN_COMPUTE_CAPABILITY, "fp8 needs")


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantises each row of x with one scale.

    x: (M, K) in float32, float16 or bfloat16. Returns (q, scale): float8_e4m3fn (M, K) and float32 (M, 1).
    Raises ValueError for another number of axes, TypeError for another dtype.
    """
    _check_states("quantize", x)
    if resolve_backend(x) == "torch":
        return quantize_ref(x)
    from . import fp8_kernels

    return fp8_kernels.quantize(x)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, *, x_bias: Tensor | None = None, eps: float = 1e-12
) -> tuple[Tensor, Tensor, Tensor]:
    """y = layer_norm(x + x_bias + residual), and y quantised by rows in the same kernel.

    x, residual: (M, N), one dtype. weight, bias, x_bias: (N,). Returns (y, q, scale): y like x, and `quantize(y)`.
    Raises ValueError for shapes that do not fit, TypeError for a dtype that does not.
    """
    _check_states("layer_norm", x)
    if residual.shape != x.shape or residual.dtype != x.dtype:
        raise ValueError(f"layer_norm: expected residual like x, {_about(x)}, got {_about(residual)}")
    for name, tensor in (("weight", weight), ("bias", bias), ("x_bias", x_bias)):
        if tensor is not None and tensor.shape != x.shape[1:]:
            raise ValueError(f"layer_norm: expected {name} of shape ({x.shape[1]},), got {tuple(tensor.shape)}")
    if resolve_backend(x) == "torch":
        y = reference.layer_norm_ref(x, weight, bias, residual, x_bias=x_bias, eps=eps).to(x.dtype)
        return y, *quantize_ref(y)
    from . import fp8_kernels

    return fp8_kernels.layer_norm(x, weight, bias, residual, x_bias, eps)


def linear(
    q: Tensor,
    scale: Tensor,
    weight_q: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    *,
    activation: str | None = None,
    out_dtype: torch.dtype,
) -> Tensor:
    """activation(x @ weight.T + bias) for quantised x and weight; the result is not quantised.

    q: float8_e4m3fn (M, K). scale: float32 (M, 1), or (M, ceil(K / GROUP)): one per GROUP columns. weight_q: float8_e4m3fn
    (N, K). weight_scale: float32 (N,), one per output. bias: (N,) or None. activation: 'gelu_erf', 'gelu_tanh', 'relu' or
    None. out_dtype: dtype of the result.
    Returns (M, N).
    Raises ValueError for shapes that do not fit or another activation, TypeError for other dtypes.
    """
    _check_product("linear", q, scale, weight_q, weight_scale, bias)
    if activation is not None and activation not in ACTIVATIONS:
        raise ValueError(f"linear: expected 'gelu_erf', 'gelu_tanh', 'relu' or None, got {activation!r}")
    if _on_torch(q):
        y = linear_ref(q, scale, weight_q, weight_scale, bias).to(out_dtype)
    else:
        from . import fp8_kernels

        y = fp8_kernels.linear(q, scale, weight_q, weight_scale, bias, out_dtype)
    return reference.activate(y, activation)


def linear_activation(
    q: Tensor, scale: Tensor, weight_q: Tensor, weight_scale: Tensor, bias: Tensor, *, activation: str
) -> tuple[Tensor, Tensor]:
    """activation(x @ weight.T + bias), quantised in the epilogue of the product with a scale per row and GROUP columns.

    Arguments as in `linear`. activation: 'gelu_erf', 'gelu_tanh' or 'relu'.
    Returns (q, scale): float8_e4m3fn (M, N) and float32 (M, ceil(N / GROUP)).
    Raises ValueError for shapes that do not fit or another activation, TypeError for other dtypes.
    """
    _check_product("linear_activation", q, scale, weight_q, weight_scale, bias)
    if activation not in ACTIVATIONS:
        raise ValueError(f"linear_activation: expected 'gelu_erf', 'gelu_tanh' or 'relu', got {activation!r}")
    if _on_torch(q):
        return quantize_ref(linear_activation_ref(q, scale, weight_q, weight_scale, bias, activation), GROUP)
    from . import fp8_kernels

    return fp8_kernels.linear_activation(q, scale, weight_q, weight_scale, bias, activation)


# The emulation. On float64 inputs it is what the kernel tests compare with.


def quantize_ref(x: Tensor, group: int | None = None) -> tuple[Tensor, Tensor]:
    """(q, scale) with a scale per row, or per row and `group` columns."""
    rows, columns = x.shape
    group = columns if group is None else group
    wide = F.pad(x.float(), (0, -columns % max(group, 1))).unflatten(1, (-1, max(group, 1)))
    largest = wide.abs().amax(-1) if wide.numel() else wide.new_zeros(rows, wide.shape[1])
    largest = largest.clamp(min=SMALLEST)
    q = (wide * (LARGEST / largest)[..., None]).clamp(-LARGEST, LARGEST).to(E4M3)
    return q.flatten(1)[:, :columns].contiguous(), largest / LARGEST


def dequantize(q: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """q * scale in `dtype`. scale: (M, 1), or one per row and GROUP columns."""
    if scale.shape[1] > 1:
        scale = scale.repeat_interleave(GROUP, 1)[:, : q.shape[1]]
    return q.to(dtype) * scale.to(dtype)


def linear_ref(q: Tensor, scale: Tensor, weight_q: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias in the dtype of scale."""
    dtype = scale.dtype
    with torch.autocast(q.device.type, enabled=False):
        y = F.linear(dequantize(q, scale, dtype), weight_q.to(dtype) * weight_scale[:, None].to(dtype))
    return y if bias is None else y + bias.to(dtype)


def linear_activation_ref(
    q: Tensor, scale: Tensor, weight_q: Tensor, weight_scale: Tensor, bias: Tensor, activation: str
) -> Tensor:
    """activation(x @ weight.T + bias) in the dtype of scale: what `linear_activation` quantises."""
    return reference.activate(linear_ref(q, scale, weight_q, weight_scale, bias), activation)


def _on_torch(q: Tensor) -> bool:
    """Whether PyTorch is the backend, asked with a dtype that kernels have: that of q says nothing."""
    return resolve_backend(q.new_empty(0, dtype=torch.float32)) == "torch"


def _about(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)} in {str(tensor.dtype).removeprefix('torch.')}"


def _check_states(operation: str, x: Tensor) -> None:
    if x.dim() != 2:
        raise ValueError(f"{operation}: expected x of two axes, got shape {tuple(x.shape)}")
    if x.dtype not in KERNEL_DTYPES:
        raise TypeError(f"{operation}: expected x in float32, float16 or bfloat16, got {x.dtype}")


def _check_product(
    operation: str, q: Tensor, scale: Tensor, weight_q: Tensor, weight_scale: Tensor, bias: Tensor | None
) -> None:
    for name, tensor in (("q", q), ("weight_q", weight_q)):
        if tensor.dim() != 2:
            raise ValueError(f"{operation}: expected {name} of two axes, got shape {tuple(tensor.shape)}")
        if tensor.dtype != E4M3:
            raise TypeError(f"{operation}: expected {name} in float8_e4m3fn, got {tensor.dtype}")
    for name, tensor in (("scale", scale), ("weight_scale", weight_scale)):
        if tensor.dtype != torch.float32:
            raise TypeError(f"{operation}: expected {name} in float32, got {tensor.dtype}")
    (M, K), N = q.shape, weight_q.shape[0]
    if weight_q.shape[1] != K:
        raise ValueError(
            f"{operation}: expected weight_q of shape (N, {K}) for q of shape {(M, K)}, got {tuple(weight_q.shape)}"
        )
    if scale.shape not in ((M, 1), (M, num_groups(K))):
        raise ValueError(f"{operation}: expected scale of shape {(M, 1)} or {(M, num_groups(K))}, got {tuple(scale.shape)}")
    if weight_scale.shape != (N,):
        raise ValueError(f"{operation}: expected weight_scale of shape ({N},), got {tuple(weight_scale.shape)}")
    if bias is not None and bias.shape != (N,):
        raise ValueError(f"{operation}: expected bias of shape ({N},), got {tuple(bias.shape)}")
