"""Each matrix product of keys.OPERATIONS alone, as the layers run it, and in plain PyTorch: candidates for tuning.

Besides the product, each computes what a layer of BERT needs with it: the forward saves nothing (as in inference), the
derivative comes with its sum over the rows and the recomputed activation, a weight gradient comes with the bias gradient
where that is not left to another kernel.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import reference
from ..device import architecture, dot_precision
from ..matmul import products
from ..matmul.config import GemmConfig, candidates, unsupported_reason
from ..matmul.keys import GEMM_PRODUCTS, OPERATIONS

Operands = dict[str, Tensor]


@dataclass(frozen=True)
class Product:
    """One product of a layer. N, K: of its weight, or of the three side by side. with_bias: in a wgrad, the bias gradient."""

    operation: str
    N: int
    K: int
    with_bias: bool = False
    activation: str = "gelu_erf"

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS:
            raise ValueError(f"expected an operation among {', '.join(OPERATIONS)}, got {self.operation!r}")

    def operands(self, M: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Operands:
        """Normally distributed operands, the weight scaled so that the product is of order one. generator: of that device."""

        def draw(*shape: int, std: float = 1.0) -> Tensor:
            return (torch.randn(shape, dtype=torch.float32, device=device, generator=generator) * std).to(dtype)

        N, K = self.N, self.K
        forward = self.operation in ("linear", "linear_activation", "qkv_linear")
        found = {"x": draw(M, K)} if forward else {"dy": draw(M, N)}
        if self.operation == "wgrad":
            found["x"] = draw(M, K)
        else:
            found["weight"] = draw(N, K, std=(K if forward else N) ** -0.5)
        if forward and self.with_bias:
            found["bias"] = draw(N)
        if self.operation == "dgrad_activation":
            found["u"] = draw(M, K)
        return found

    def tiles(self, operands: Operands) -> list[GemmConfig]:
        """Every tile that ships for this product and can read these operands, without spills."""
        one = next(iter(operands.values()))
        arch = architecture(one.device)
        tiles = candidates(GEMM_PRODUCTS[self.operation], one.dtype, dot_precision(one.dtype, arch), arch)
        tiles = tuple(tile for tile in tiles if tile.suits(self.N, self.K))
        if "x" not in operands or "weight" not in operands:  # of the backward, whose tiles read everything
            return list(tiles)
        weights = _thirds(operands["weight"]) if self.operation == "qkv_linear" else (operands["weight"],)
        return [tile for tile in tiles if unsupported_reason(tile, operands["x"], weights) is None]

    def run(self, operands: Operands) -> tuple[Tensor, ...]:
        """By the kernels or the library, as choose.py decides. What the reference does not return is left out."""
        return _RUN[self.operation](self, **operands)

    def reference(self, operands: Operands) -> tuple[Tensor, ...]:
        """The same in plain PyTorch, in the dtype of the operands."""
        return _REFERENCE[self.operation](self, **operands)


def _thirds(tensor: Tensor | None) -> tuple:
    return (None,) * 3 if tensor is None else tuple(tensor.chunk(3))


def _run_linear(product: Product, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
    activation = product.activation if product.operation == "linear_activation" else None
    return products.forward(x, weight, bias, activation, False)[:1]


def _run_wgrad(product: Product, dy: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    return products.wgrad(dy, x, product.with_bias)[: 1 + product.with_bias]


_RUN: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "linear": _run_linear,
    "linear_activation": _run_linear,
    "qkv_linear": lambda product, x, weight, bias=None: (products.qkv_forward(x, _thirds(weight), _thirds(bias)),),
    "dgrad": lambda product, dy, weight: (products.dgrad(dy, weight),),
    "dgrad_activation": lambda product, dy, weight, u: products.dgrad_activation(dy, weight, u, product.activation, True, True),
    "qkv_dgrad": lambda product, dy, weight: (products.qkv_dgrad(dy, _thirds(weight)),),
    "wgrad": _run_wgrad,
}


def _plain_linear(product: Product, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
    activation = product.activation if product.operation == "linear_activation" else None
    return (reference.linear_ref(x, weight, bias, activation=activation),)


def _plain_dgrad_activation(product: Product, dy: Tensor, weight: Tensor, u: Tensor) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        leaf = u.detach().requires_grad_()
        h = reference.activate(leaf, product.activation)
        (du,) = torch.autograd.grad(h, leaf, dy @ weight)
    return du, du.sum(0), h.detach()


_REFERENCE: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "linear": _plain_linear,
    "linear_activation": _plain_linear,
    "qkv_linear": _plain_linear,
    "dgrad": lambda product, dy, weight: (dy @ weight,),
    "dgrad_activation": _plain_dgrad_activation,
    "qkv_dgrad": lambda product, dy, weight: (dy @ weight,),
    "wgrad": lambda product, dy, x: (dy.t() @ x, dy.sum(0))[: 1 + product.with_bias],
}


def of_layer(hidden_size: int, intermediate_size: int, activation: str, *, training: bool) -> tuple[Product, ...]:
    """The products of one layer of BERT: forward, and those of the backward too where training."""
    D, F = hidden_size, intermediate_size
    forward = (
        Product("qkv_linear", 3 * D, D, with_bias=True),
        Product("linear", D, D),  # the bias of this one and of the last belongs to the norm that follows
        Product("linear_activation", F, D, with_bias=True, activation=activation),
        Product("linear", D, F),
    )
    backward = (
        Product("qkv_dgrad", 3 * D, D),
        Product("dgrad", D, D),
        Product("dgrad_activation", D, F, activation=activation),
        Product("dgrad", F, D),
        Product("wgrad", 3 * D, D, with_bias=True),
        Product("wgrad", D, D),
        Product("wgrad", F, D),
        Product("wgrad", D, F),
    )
    return forward + backward if training else forward
