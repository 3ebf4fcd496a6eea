"""A tensor descriptor as a launcher passes it, in every release of Triton from 3.6 on.

Triton has both lists itself, but each release has them at another place and with other arguments.
"""

import inspect
from collections.abc import Sequence
from typing import Any

from triton.backends.nvidia import driver as nvidia

from .tensor_map import TensorMap


def parts(descriptor: Any, meta: dict[str, Any] | None) -> list[Any]:
    """A tensor map or, for a kernel without bulk copies (meta is None), the tensor and its flags; then shape and strides."""
    make = nvidia.make_tensordesc_arg
    unused = len(inspect.signature(make).parameters) - 2  # 3.9 has one
    return make(descriptor, meta, *[None] * unused)


def kinds(kind: str, values: Sequence[Any]) -> list[str]:
    """The type of each part. kind: Triton's type of the descriptor, as `tensordesc<bf16[64, 64]>`."""
    element, axes = kind.split("<", 1)[1].split("[", 1)
    rank = axes.split("]")[0].count(",") + 1
    sizes = ["i32"] * rank + ["i64"] * rank
    if isinstance(values[0], TensorMap):
        return ["nvTmaDesc", *sizes]
    flags = len(values) - 1 - 4 * rank  # padding and, from 3.7 on, rounding to tf32
    return [f"*{element}", *["i64"] * (2 * rank), *["i1"] * flags, *sizes]
