"""How the kernels of matmul/ are launched, for the specs of the operations that use them.

Every tile that `choose` may take, measured ones too, with every epilogue, type and alignment of operands.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from ..limits import ACTIVATIONS
from ..matmul.activation_backward import activation_backward
from ..matmul.config import PRODUCTS, GemmConfig, candidates, configs, unsupported_reason
from ..matmul.pointers import gemm_dgrad, gemm_fwd, gemm_wgrad
from ..primitives.reduce import column_sum
from .launches import COMPLETE, Point, cut, draws

# dtype and precision of a product.
NUMBERS = ((torch.bfloat16, "ieee"), (torch.float16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee"))
OF_BERT, IN_FLOAT32 = NUMBERS[0], NUMBERS[2:]
# Sizes of an axis: whole steps of every sum, whole vectors but not steps, what descriptors alone read whole, neither, and one.
SIZES = (768, 784, 776, 771, 1)
LAYOUTS = ("contiguous", "contiguous", "padded", "far", "unaligned")


def forward_points(target: str, *, bert: Sequence[tuple[bool, str | None, bool]], parts: int = 1) -> Iterator[Point]:
    """What BERT launches, as (has a bias, activation, saves u); in bfloat16 its own, and in float32."""
    for dtype, precision in (OF_BERT, *IN_FLOAT32):
        for config in candidates("fwd", dtype, precision, target):
            of_bert = dtype == torch.bfloat16 and config in configs("fwd", dtype, precision, target)
            for bias, activation, save in bert:
                call = partial(_forward, 2, 768, 768, dtype, config, parts, bias, activation, save)
                yield Point(call, precision, of_bert)


def gradient_points(target: str, *, parts: int = 1, activation: str | None = None) -> Iterator[Point]:
    """The same for the backward. A wgrad of one split is rounded, several are float32 and added by another kernel."""
    wants = (activation is not None,) * 2
    for dtype, precision in (OF_BERT, *IN_FLOAT32):
        of_bert = dtype == torch.bfloat16
        for config in configs("dgrad" if activation is None else "dgrad_activation", dtype, precision, target):
            yield Point(partial(_dgrad, 2, 768, 768, dtype, config, parts, activation, *wants), precision, of_bert)
        for config in configs("wgrad", dtype, precision, target):
            for M in (2, 1024):
                yield Point(partial(_wgrad, M, 768, 768, dtype, config), precision, of_bert)


def any_points(target: str) -> Iterator[Point]:
    """Every tile and type with every epilogue, size and alignment."""
    if target not in COMPLETE:
        return
    everything: dict[str, Any] = dict(
        N=SIZES,
        K=SIZES,
        parts=(1, 1, 3),
        activation=(None, *ACTIVATIONS),
        layout=LAYOUTS,
        one=(False, True),  # of a flag
        other=(False, True),  # of another
        out_dtype=(None, torch.float32),
    )
    for dtype, precision in NUMBERS:
        for product in PRODUCTS:
            for config, drawn in draws(0, (candidates(product, dtype, precision, target),), 60, **everything):
                N, K, parts, activation, layout, one, other, out_dtype = drawn.values()
                if product == "wgrad":
                    call = partial(_wgrad, 1024 if one else 2, N, K, dtype, config, layout, out_dtype)
                elif product == "fwd":
                    activation = activation if parts == 1 else None
                    save_u = other and activation is not None
                    call = partial(_forward, 2, N, K, dtype, config, parts, one, activation, save_u, layout)
                elif product == "dgrad":
                    out_dtype = out_dtype if parts == 1 else None
                    call = partial(_dgrad, 2, N, K, dtype, config, parts, None, False, False, layout, out_dtype)
                else:
                    call = partial(_dgrad, 2, N, K, dtype, config, 1, activation or "gelu_erf", one, other, layout)
                yield Point(call, precision)


def _forward(M, N, K, dtype, config: GemmConfig, parts, bias, activation, save_u, layout="contiguous") -> None:
    x, weights = cut((M, K), dtype, layout), [cut((N, K), dtype, layout) for _ in range(parts)]
    biases = [torch.zeros(N, dtype=dtype) if bias else None] * parts
    if config.suits(N, K) and unsupported_reason(config, x, weights) is None:
        gemm_fwd(x, weights, biases, activation, save_u, config=config)


def _dgrad(M, N, K, dtype, config, parts, activation, want_sum, want_h, layout="contiguous", out_dtype=None) -> None:
    dy, weights = cut((M, parts * N), dtype, layout), [cut((N, K), dtype, layout) for _ in range(parts)]
    u = None if activation is None else torch.zeros(M, K, dtype=dtype)
    if config.suits(N, K):
        gemm_dgrad(dy, weights, u, activation, want_sum, want_h, out_dtype=out_dtype, config=config)


def _wgrad(M, N, K, dtype, config, layout="contiguous", out_dtype=None) -> None:
    dy, x = cut((M, N), dtype, layout), cut((M, K), dtype, layout)
    if config.suits(N, K):
        gemm_wgrad(dy, x, out_dtype=out_dtype, config=config)


def gradients_to_float32(target: str) -> Iterator[Point]:
    """The products of a loss over a vocabulary, in bfloat16."""
    for config in configs("dgrad", *OF_BERT, target):
        call = partial(_dgrad, 2, 768, 768, OF_BERT[0], config, 1, None, False, False, out_dtype=torch.float32)
        yield Point(call, of_bert=True)
    for config in configs("wgrad", *OF_BERT, target):
        for M in (2, 1024):
            yield Point(partial(_wgrad, M, 768, 768, OF_BERT[0], config, out_dtype=torch.float32), of_bert=True)


def pass_points(target: str) -> Iterator[Point]:
    """Kernels that follow a product of the library: the derivative of an activation, and sums over the rows."""
    bf16 = torch.bfloat16
    states = torch.zeros(2, 768, dtype=bf16)
    for want_h in (False, True):  # of the head's transform, and of a feed-forward
        yield Point(partial(activation_backward, states, states, "gelu_erf", True, want_h), of_bert=True)
    yield Point(partial(column_sum, states, bf16), of_bert=True)
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    if target not in COMPLETE:
        return
    others: dict[str, Any] = dict(want_sum=(False, True), want_h=(False, True), layout=LAYOUTS, out_dtype=dtypes)
    for N, dtype, activation, drawn in draws(0, (SIZES, dtypes, ACTIVATIONS), 3, **others):
        dh, u = cut((2, N), dtype, drawn["layout"]), torch.zeros(2, N, dtype=dtype)
        yield Point(partial(activation_backward, dh, u, activation, drawn["want_sum"], drawn["want_h"]))
        yield Point(partial(column_sum, dh, torch.float32 if drawn["out_dtype"] == torch.float32 else dtype))
