"""Path and verdict: how a part of a model is computed and why, and the verdict on one linear layer, norm or weight."""

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastbert.model.fallback.hooks import find_intervention, is_touched
from fastbert.model.fallback.parts import weights_of

PLAIN_TENSORS = (nn.Parameter, Tensor)
# Libraries whose subclasses of nn.Linear are linear maps: other storage, same meaning.
LINEAR_LIBRARIES = frozenset(("torch", "torchao", "transformers", "peft", "bitsandbytes", "optimum", "quanto", "hqq"))


class Path(enum.Enum):
    """How a part of a model is computed. Compare with `is`."""

    FUSED = enum.auto()  # fastbert's fused operations on packed rows
    MODULES = enum.auto()  # the model's modules, called on packed rows
    TRANSFORMERS = enum.auto()  # transformers' code on padded tensors


class Verdict(NamedTuple):
    """path: how a part is computed. why: why not by fused operations; empty where it is."""

    path: Path
    why: str = ""


FUSED = Verdict(Path.FUSED)
NORM_WITHOUT_WEIGHTS = Verdict(Path.MODULES, "LayerNorm without weight or bias")


def linear_verdict(module: Any) -> Verdict:
    """How a module is computed where BERT has an nn.Linear."""
    if type(module) is nn.Linear and not is_touched(module):
        return FUSED
    name = type(module).__name__
    if not _works_on_rows(module):
        return Verdict(Path.TRANSFORMERS, f"{name} instead of Linear")
    for part in module.modules():
        why = find_intervention(part, called=True)
        if why is not None:
            return Verdict(Path.TRANSFORMERS, why)
    return Verdict(Path.MODULES, f"{name} is called as a module")


def _works_on_rows(module: Any) -> bool:
    """Whether a module in the position of an nn.Linear treats every row alone, as far as its type tells."""
    kinds = {(cls.__module__.split(".")[0], cls.__name__) for cls in type(module).__mro__}
    if ("peft", "BaseTunerLayer") in kinds:
        return _works_on_rows(module.base_layer)
    if type(module).__module__.startswith("torch.ao.nn.quantized.dynamic"):
        return True
    library = type(module).__module__.split(".")[0]
    return isinstance(module, nn.Linear) and (type(module).forward is nn.Linear.forward or library in LINEAR_LIBRARIES)


def norm_verdict(module: Any) -> Verdict:
    """How a module is computed where BERT has an nn.LayerNorm."""
    if type(module) is not nn.LayerNorm:
        return Verdict(Path.TRANSFORMERS, f"{type(module).__name__} instead of LayerNorm")
    if is_touched(module):
        why = find_intervention(module, called=True)
        if why is not None:
            return Verdict(Path.TRANSFORMERS, why)
        return Verdict(Path.MODULES, "LayerNorm is called as a module for its hooks")
    weight, bias = weights_of(module)
    if weight is None or bias is None or len(module.normalized_shape) != 1:
        return NORM_WITHOUT_WEIGHTS
    return FUSED


def weights_verdict(*tensors: Tensor | None, dtype: torch.dtype | None = None) -> Verdict:
    """Whether a fused operation can read these weights: FUSED, or MODULES for another tensor type or another dtype."""
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in PLAIN_TENSORS and not _is_traced(tensor) and id(tensor) not in _gathered.get():
            return Verdict(Path.MODULES, f"its weight is a {type(tensor).__name__}")
        if dtype is not None and tensor.dtype != dtype:
            return Verdict(Path.MODULES, f"its weight is {dtype_name(tensor.dtype)}, the states are {dtype_name(dtype)}")
    return FUSED


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_traced(tensor: Tensor) -> bool:
    return type(tensor).__name__ in ("FakeTensor", "FunctionalTensor")


# Parameters that FSDP2 gathers around each call, by id: set while `explain` inspects a model between its calls.
_gathered: ContextVar[frozenset[int]] = ContextVar("gathered", default=frozenset())


@contextmanager
def assume_gathered(model: nn.Module) -> Iterator[None]:
    """Inside, verdicts take the model's FSDP2 shards for the plain tensors that a call sees."""
    token = _gathered.set(_gathered_by_fsdp(model))
    try:
        yield
    finally:
        _gathered.reset(token)


def _gathered_by_fsdp(model: nn.Module) -> frozenset[int]:
    """The shards of one-dimensional meshes; those of several dimensions are parallel in other ways too."""
    if not torch.distributed.is_available():
        return frozenset()
    from torch.distributed.fsdp import FSDPModule

    units: list[Any] = [module for module in model.modules() if isinstance(module, FSDPModule)]
    shards = {parameter for unit in units for parameter in unit.parameters() if hasattr(parameter, "device_mesh")}
    return frozenset(id(parameter) for parameter in shards if parameter.device_mesh.ndim == 1)
