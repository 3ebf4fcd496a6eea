"""A choice of dispatch.py as the launchers take it: whether Triton computes a product, and on which tile."""

from collections.abc import Sequence
from functools import cache

from torch import Tensor

from .choose import GEMM_PRODUCTS, decide
from .config import GemmConfig, obstacle

_named = cache(GemmConfig.named)


def side(
    operation: str, M: int, weight_shape: Sequence[int], like: Tensor, weights: Sequence[Tensor] = ()
) -> tuple[bool, GemmConfig | None]:
    """(whether Triton computes it, the measured tile or None where gemm.py is to choose).

    like: has the dtype and device; in a forward it is x, and weights are there: a measured tile that cannot read these
    very tensors (a view whose rows are not aligned, say) leaves the tile to gemm.py.
    """
    N, K = weight_shape
    choice = decide(operation, M, N, K, like.dtype, like.device)
    config = None if choice.config is None else _named(GEMM_PRODUCTS[operation], choice.config)
    if config is not None and weights and obstacle(config, like, weights) is not None:
        config = None
    return choice.side == "triton", config
