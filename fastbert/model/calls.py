"""What happened in a model's calls: the path of the last one, and which warnings were given.

Kept outside the modules, so that nothing of it is copied, pickled or traced.
"""

import warnings
import weakref
from dataclasses import dataclass, field

import torch
from torch import nn


@dataclass
class _Record:
    path: str | None = None  # which path the last call took, and why
    warned: set[str] = field(default_factory=set)  # reasons


_records: "weakref.WeakKeyDictionary[nn.Module, _Record]" = weakref.WeakKeyDictionary()


def record_path(model: nn.Module, path: str) -> None:
    """Records which path a call of this model took; nothing while tracing."""
    if not torch.compiler.is_compiling():
        _records.setdefault(model, _Record()).path = path


def last_path(model: nn.Module) -> str | None:
    """The path of the model's last call, or None before the first."""
    found = _records.get(model)
    return None if found is None else found.path


def forget(model: nn.Module) -> None:
    """Drops what is known of the model's calls."""
    _records.pop(model, None)


def has_warned(model: nn.Module, reason: str) -> bool:
    """Whether `warn_once` has warned this model's user for this reason."""
    return model in _records and reason in _records[model].warned


def warn_once(model: nn.Module, reason: str, message: str) -> None:
    """Warns with `message` at the first call of this model for this reason; under torch.compile, while it compiles."""
    if torch.compiler.is_dynamo_compiling():
        _warn_while_compiling(message)
        return
    if torch.compiler.is_compiling():
        return
    warned = _records.setdefault(model, _Record()).warned
    if reason not in warned:
        warned.add(reason)
        warnings.warn(message, UserWarning, stacklevel=2)


@torch.compiler.assume_constant_result  # runs where the compiler meets it, and leaves nothing in the compiled code
def _warn_while_compiling(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=2)
