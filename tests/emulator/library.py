"""Matrix products that fastbert leaves to PyTorch's library, multiplied here as on the GPU that the emulator stands for.

A CPU's library adds float32 in several sums, and cuts nothing in tf32: what it returns says nothing of a GPU. Judged against a
reference that adds as a GPU does, it would pass or fail by luck.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch import Tensor


@contextmanager
def library_of_a_gpu() -> Iterator[None]:
    """Within the `with` block, which lies inside `device.pretend`, the library multiplies float32 as matrix_unit says."""
    from fastbert.kernels.matmul import products
    from fastbert.kernels.specs.matrix_unit import hardware_products

    library = products._library

    def on_a_gpu(product: Callable[..., Tensor], *operands: Tensor, **options: Any) -> Tensor:
        with hardware_products(operands[0].dtype, operands[0].device):
            return library(product, *operands, **options)

    with mock.patch.object(products, "_library", on_a_gpu):
        yield
