"""The BERTs of an object: of a module, or of something that is none and keeps modules in its attributes."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers.models.bert import modeling_bert as hf

from fastbert.model.registry import REPLACEMENTS

DEPTH = 3  # attributes of attributes: a SetFit trainer holds a model that holds a sentence-transformers model
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type)
_NAMES_SHOWN = 12  # in an error


def holds_bert(module: nn.Module) -> bool:
    """Whether transformers' BertModel or fastbert's is inside, by exact type."""
    return any(type(part) in (hf.BertModel, REPLACEMENTS[hf.BertModel]) for part in module.modules())


def modules_in(holder: Any, where: str) -> list[nn.Module]:
    """The modules that hold a BertModel: the module itself, or those among the attributes of another object.

    holder: a module, or an object whose attributes, their items and their own attributes are searched. where: how an error
    begins. Raises TypeError, which names the attributes that were looked through, where there is none.
    """
    expected = f"{where}: expected a torch.nn.Module with a transformers BertModel inside, or an object that holds one, got"
    if isinstance(holder, nn.Module):
        if not holds_bert(holder):
            raise TypeError(f"{expected} the module {type(holder).__name__} without one")
        return [holder]
    looked: list[str] = []
    found = {id(module): module for module in _search(holder, "", DEPTH, looked, set()) if holds_bert(module)}
    if not found:
        shown = ", ".join(looked[:_NAMES_SHOWN]) + (
            f" and {len(looked) - _NAMES_SHOWN} more" if len(looked) > _NAMES_SHOWN else ""
        )
        raise TypeError(f"{expected} {type(holder).__name__} without one" + (f" in {shown}" if looked else ""))
    return list(found.values())


def _search(value: Any, name: str, depth: int, looked: list[str], seen: set[int]) -> Iterator[nn.Module]:
    if isinstance(value, _PLAIN) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        yield value
        return
    for key, inner in _parts(value):
        path = f"{name}.{key}" if name else str(key)
        if not isinstance(inner, _PLAIN):
            looked.append(path)
        if depth:
            yield from _search(inner, path, depth - 1, looked, seen)


def _parts(value: Any) -> list[tuple[Any, Any]]:
    """Attributes or items, read without running properties."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    slots = [name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ()) if isinstance(name, str)]
    kept = [(name, getattr(value, name)) for name in slots if hasattr(value, name)]
    return [*getattr(value, "__dict__", {}).items(), *kept]
