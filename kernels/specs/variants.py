"""Triton types of a kernel's arguments, for the variants that operation specs list."""

from collections.abc import Mapping
from typing import Any


def signature(kernel: Any, constexprs: Mapping[str, Any], dtype: str, **types: str) -> dict[str, str]:
    """The type of each argument that is not in `constexprs`.

    types: those of single arguments by name, '*fp32' for instance. Other pointers are to `dtype` ('bf16'), the rest is 'i32'.
    """
    names = (name for name in kernel.arg_names if name not in constexprs)
    return {name: types.get(name, f"*{dtype}" if name.endswith("_ptr") else "i32") for name in names}
