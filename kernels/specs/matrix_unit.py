"""How NVIDIA GPUs multiply float32 and fp8, written out in PyTorch, for the accuracy rule. Imports no Triton.

A kernel cannot err less than the unit that multiplies for it. Where the unit drops bits that PyTorch on a CPU keeps, the rule
compares the kernel with what these functions compute, not with a library whose own rounding nobody states.

tf32: the unit ignores the lower 13 bits of an operand (PTX ISA on operands of type .tf32). Triton gives it float32 as it is,
without the rounding of cvt.rna.tf32, so operands are cut towards zero.
float32 without tf32: the scalar units add the products of an element to one running sum, fused multiply-add by fused
multiply-add, in the kernels as in a library. A CPU's library keeps several sums of each and errs less.
fp8: after aligning 32 products by the largest exponent the unit keeps the highest 14 bits of each (DeepSeek-V3 technical
report, section 3.3.2, for Hopper; SageAttention2, Zhang et al. 2024, finds 13 fraction bits on Ada and Hopper). NVIDIA says
nothing of it, and of later units nothing is known here.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..device import architecture, dot_precision, is_gpu
from ..fp8_format import GROUP

TF32_IGNORED_BITS = 13
FP8_KEPT_BITS = 14
FP8_PRODUCTS = 32  # that one instruction adds to its accumulator
_FIRST_OPERAND = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::baddbmm": 1}
_ELEMENTS = 1 << 22  # of products held at a time


def multiplies_in_tf32(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernels give products of this dtype to a tf32 matrix unit on this device."""
    return dot_precision(dtype, architecture(device)) == "tf32"


def adds_fp8_in_14_bits(device: torch.device) -> bool:
    """Whether fp8 products on this device are added by a unit that is known to keep 14 bits: Ada's and Hopper's."""
    return architecture(device) in ("sm_89", "sm_90")


def cut_to_tf32(x: Tensor) -> Tensor:
    """float32 x without the bits that a tf32 matrix unit ignores."""
    bits = x.contiguous().view(torch.int32)
    return (bits & -(1 << TF32_IGNORED_BITS)).view(torch.float32)


@contextmanager
def hardware_products(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Within the `with` block, PyTorch multiplies matrices of this dtype as the kernels' hardware does on this device.

    Nothing changes for 16 bits, nor for float32 where PyTorch runs on that hardware or stands for none: a GPU, or a CPU that
    does not pretend to be one.
    """
    with ExitStack() as stack:
        if multiplies_in_tf32(dtype, device):
            stack.enter_context(tf32_products())
        elif dtype == torch.float32 and device.type == "cpu" and is_gpu(device):
            stack.enter_context(_RunningSums())
        yield


@contextmanager
def tf32_products() -> Iterator[None]:
    """Within the `with` block, float32 matrices are multiplied as by a tf32 unit: operands cut, products added in float32."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"  # of operands that are cut already
    try:
        with _CutOperands():
            yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


class _Products(TorchDispatchMode):
    """Replaces every matrix product of two float32 matrices, those of a backward included."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = func._schema.name, kwargs or {}
        if "scaled_dot_product" in name or "convolution" in name:
            raise NotImplementedError(f"expected products as matrix multiplications, got {name}")
        first = _FIRST_OPERAND.get(name)
        if first is None or args[first].dtype != torch.float32:
            return func(*args, **kwargs)
        product = self.multiply(args[first], args[first + 1])
        if first == 1:
            product = kwargs.get("beta", 1) * args[0] + kwargs.get("alpha", 1) * product
        return kwargs["out"].copy_(product) if "out" in kwargs else product

    def multiply(self, left: Tensor, right: Tensor) -> Tensor:
        raise NotImplementedError


class _CutOperands(_Products):
    def multiply(self, left: Tensor, right: Tensor) -> Tensor:
        return cut_to_tf32(left) @ cut_to_tf32(right)


class _RunningSums(_Products):
    def multiply(self, left: Tensor, right: Tensor) -> Tensor:
        left, right = left.double(), right.double()
        total = torch.zeros((*left.shape[:-1], right.shape[-1]), dtype=torch.float32, device=left.device)
        for k in range(left.shape[-1]):  # a product of two float32 is exact in float64: rounded once, as a fused multiply-add
            total = (total + left[..., k, None] * right[..., k, None, :]).float()
        return total


def fp8_product(q: Tensor, scale: Tensor, weight_q: Tensor) -> Tensor:
    """(q * scale) @ weight_q.T, added in 14 bits within each GROUP columns and in float32 from one group to the next.

    q: (M, K). scale: (M, 1) or (M, ceil(K / GROUP)). weight_q: (N, K). Both hold numbers of e4m3, in any dtype.
    Returns (M, N) in float32.
    """
    M, N = q.shape[0], weight_q.shape[0]
    rows = max(_ELEMENTS // (max(N, 1) * FP8_PRODUCTS), 1)
    out = torch.zeros((M, N), dtype=torch.float32, device=q.device)
    for column in range(0, q.shape[1], GROUP):
        columns = slice(column, column + GROUP)
        group_scale = scale[:, column // GROUP, None] if scale.shape[1] > 1 else 1.0
        sums = [_sum_in_14_bits(part, weight_q[:, columns]) for part in q[:, columns].split(rows)]
        out += torch.cat(sums or [out]) * group_scale
    return out if scale.shape[1] > 1 else out * scale


def _sum_in_14_bits(q: Tensor, weight_q: Tensor) -> Tensor:
    """q @ weight_q.T of one group, which the kernels fill with zeros: each instruction cuts the sum. float32 (M, N)."""
    q, weight_q = (F.pad(operand.double(), (0, GROUP - operand.shape[1])) for operand in (q, weight_q))
    total = torch.zeros((q.shape[0], weight_q.shape[0]), dtype=torch.float64, device=q.device)
    for left, right in zip(q.split(FP8_PRODUCTS, 1), weight_q.split(FP8_PRODUCTS, 1)):
        terms = torch.cat([left[:, None] * right[None], total[..., None]], -1)  # (M, N, FP8_PRODUCTS + 1), exact
        exponent = torch.frexp(terms.abs().amax(-1, keepdim=True)).exponent
        unit = torch.exp2((exponent - FP8_KEPT_BITS).double())
        total = (terms / unit).trunc().sum(-1) * unit[..., 0]
    return total.float()
