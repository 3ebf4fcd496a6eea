"""Every tile that ships for every matrix product, those included that only a measurement selects, against float64.

A product of each tile has a bit of a tile past each edge, more steps of its sum than the tile has stages, and a last step that
is not whole. Sizes are multiples of 16, as BERT's are: others make Triton copy without asynchronous instructions.
"""

from collections.abc import Iterator

import pytest
import torch

from fastbert.kernels.matmul.choose import GemmChoice, use_choice
from fastbert.kernels.matmul.config import GemmConfig, candidates
from fastbert.kernels.matmul.keys import GEMM_PRODUCTS
from fastbert.kernels.specs.accuracy import OUT_FACTOR, Accuracy, compare_with_float64
from fastbert.kernels.specs.matrix_unit import hardware_products
from fastbert.kernels.specs.products import Product
from fastbert.kernels.specs.registry import ALL_SPECS
from tests.compiled.plan import ELSEWHERE, KINDS, Kind, kernels_of, share

CPU = torch.device("cpu")
Run = tuple[str, GemmConfig]
SPECS = {"qkv_linear": "qkv_linear", "qkv_dgrad": "qkv_linear", "linear_activation": "feed_forward"}
SPECS |= {"dgrad_activation": "feed_forward", "linear": "linear", "dgrad": "linear", "wgrad": "linear"}
NAMES = {"wgrad": ("dweight", "dbias"), "dgrad_activation": ("du", "dbias", "h")}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_tile(kind: Kind, target, full, judge):
    cases = tiles(kind, target)
    if not full and kind.dtype != torch.float32:  # bf16 and fp16 have the same tiles
        cases = share(cases, KINDS[:2], kind)
    for operation, tile in cases:
        with kind.chosen():
            judge.check(SPECS[operation], kind.name, name_of((operation, tile)), lambda: check(operation, tile, kind))  # noqa: B023
    kernels = set().union(*(kernels_of(spec, kind, target) for spec in ALL_SPECS))
    judge.verdict({name for name in kernels & ELSEWHERE if "gemm" in name or "splits" in name})


def tiles(kind: Kind, target: int) -> list[Run]:
    """Every tile that ships, of every product."""
    return [
        (operation, tile)
        for operation, product in GEMM_PRODUCTS.items()
        for tile in candidates(product, kind.dtype, kind.precision, f"sm_{target}")
    ]


def name_of(run: Run) -> str:
    operation, tile = run
    return f"{operation} {tile.name}"


def check(operation: str, tile: GemmConfig, kind: Kind) -> Iterator[Accuracy]:
    M, product = shape_of(operation, tile)
    operands = product.operands(M, kind.dtype, CPU, torch.Generator().manual_seed(0))
    with use_choice(GemmChoice("triton", "under test", tile)):
        results = product.run(operands)
    with hardware_products(kind.dtype, CPU):
        same_dtype = product.reference(operands)
    exact = product.reference({name: tensor.double() for name, tensor in operands.items()})
    for name, *tensors in zip(NAMES.get(operation, ("out",)), results, same_dtype, exact, strict=True):
        yield compare_with_float64(name, *tensors, OUT_FACTOR)


def shape_of(operation: str, tile: GemmConfig) -> tuple[int, Product]:
    """(M, the product): two tiles each way, and a step more of the sum than is in flight."""
    steps = tile.inner * (tile.num_stages + 1) + 16
    rows, columns = tile.rows + 6, tile.columns + 16
    if GEMM_PRODUCTS[operation] == "fwd":
        if operation == "qkv_linear":
            each = columns if tile.structure == "pointers" else tile.columns  # a copied tile reads one of the three weights
            return rows, Product(operation, 3 * each, steps, with_bias=True)
        return rows, Product(operation, columns, steps, with_bias=True)
    if operation == "wgrad":
        return steps, Product(operation, tile.rows + 16, columns, with_bias=True)
    return rows, Product(operation, 3 * steps if operation == "qkv_dgrad" else steps, columns)
