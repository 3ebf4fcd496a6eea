"""Which fastbert class replaces which class of transformers, and the change of an instance's class in place.

A class registers itself where it is defined: `@replaces(hf.BertModel)`.
"""

from collections.abc import Callable
from typing import TypeVar

from torch import nn
from transformers.utils import output_capturing

Cls = TypeVar("Cls", bound=type[nn.Module])

REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {}  # transformers' class -> fastbert's
ORIGINALS: dict[type[nn.Module], type[nn.Module]] = {}  # and back


def replaces(original: type[nn.Module]) -> Callable[[Cls], Cls]:
    """Class decorator: `adopt` turns instances of transformers' class `original` into the decorated class."""

    def register(cls: Cls) -> Cls:
        REPLACEMENTS[original] = cls
        ORIGINALS[cls] = original
        return cls

    return register


def class_named(name: str) -> type[nn.Module]:
    """fastbert's class with the name of a transformers class. Raises ValueError where there is none."""
    for cls in ORIGINALS:
        if cls.__name__ == name:
            return cls
    raise ValueError(f"expected one of {', '.join(cls.__name__ for cls in ORIGINALS)}, got {name}")


def adopt(module: nn.Module) -> None:
    """Replaces every transformers class inside `module`, by exact type, with fastbert's. Parameters and keys stay."""
    for part in module.modules():
        replacement = REPLACEMENTS.get(type(part))
        if replacement is not None:
            part.__class__ = replacement
            register_outputs(replacement)


def register_outputs(cls: type[nn.Module]) -> None:
    """Tells transformers what a class can record: it learns that when an instance is built, which a swapped one was not."""
    outputs = getattr(cls, "_can_record_outputs", None)
    if outputs is not None:
        output_capturing._CAN_RECORD_REGISTRY.setdefault(str(cls), outputs)
