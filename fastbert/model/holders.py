"""The BERTs of an object: of a module, or of something that is none and keeps modules in its attributes."""

import types
from collections import deque
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers.models.bert import modeling_bert as hf

from fastbert.model.registry import REPLACEMENTS

DEPTH = 3  # attributes of attributes: a SetFit trainer holds a model that holds a sentence-transformers model
MAX_ITEMS = 100  # of a list, tuple or dict that is searched: models come in few, rows of a dataset in millions
_PLAIN = (str, bytes, int, float, complex, bool, type(None))
_NOT_SEARCHED = (
    *_PLAIN,
    type,
    Tensor,
    types.ModuleType,
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    types.GeneratorType,
)
_NAMES_SHOWN = 12  # in an error


def holds_bert(module: nn.Module) -> bool:
    """Whether transformers' BertModel or fastbert's is inside, by exact type."""
    return any(type(part) in (hf.BertModel, REPLACEMENTS[hf.BertModel]) for part in module.modules())


def modules_in(holder: Any, where: str) -> list[nn.Module]:
    """The modules that hold a BertModel: the module itself, or those among the attributes of another object.

    holder: a module, or an object whose attributes are searched, the items of those that are a list, tuple or dict of at most
    MAX_ITEMS, and their own attributes; no code of the object runs. where: how an error begins. Raises TypeError, which names
    the attributes that were looked through, where there is none.
    """
    expected = f"{where}: expected a torch.nn.Module with a transformers BertModel inside, or an object that holds one, got"
    if isinstance(holder, nn.Module):
        if not holds_bert(holder):
            raise TypeError(f"{expected} the module {type(holder).__name__} without one")
        return [holder]
    looked: list[str] = []
    found = {id(module): module for module in _search(holder, looked) if holds_bert(module)}
    if not found:
        shown = ", ".join(looked[:_NAMES_SHOWN]) + (
            f" and {len(looked) - _NAMES_SHOWN} more" if len(looked) > _NAMES_SHOWN else ""
        )
        raise TypeError(f"{expected} {type(holder).__name__} without one" + (f" in {shown}" if looked else ""))
    return list(found.values())


def _search(holder: Any, looked: list[str]) -> Iterator[nn.Module]:
    """The modules within DEPTH attributes or items below the holder's own, the nearest first. looked: gets their names."""
    seen, waiting = {id(holder)}, deque([(holder, "", 0)])
    while waiting:
        value, name, depth = waiting.popleft()
        for key, inner in _parts(value):
            if id(inner) in seen or issubclass(type(inner), _NOT_SEARCHED):
                continue
            seen.add(id(inner))
            shown = str(key) if type(key) in (str, int) else type(key).__name__
            path = f"{name}.{shown}" if name else shown
            kind = _container(inner)
            size = 0 if kind is None else kind.__len__(inner)
            looked.append(path if size <= MAX_ITEMS else f"{path} (not its {size} items)")
            if issubclass(type(inner), nn.Module):
                yield inner
            elif depth + 1 < DEPTH:
                waiting.append((inner, path, depth + 1))


def _container(value: Any) -> Any:
    """The builtin type by which items are read, or None."""
    return next((kind for kind in (dict, list, tuple) if issubclass(type(value), kind)), None)


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    """Items and attributes, read past whatever a class defines of its own: properties, __getattr__, items()."""
    kind = _container(value)
    if kind is not None and kind.__len__(value) <= MAX_ITEMS:
        yield from list(dict.items(value)) if kind is dict else enumerate(kind.__iter__(value))
    cls = type(value)
    for base in cls.__mro__:
        kept = vars(base).get("__dict__")
        if type(kept) is types.GetSetDescriptorType:
            yield from list(kept.__get__(value).items())
            break
    for base in cls.__mro__:
        if "__slots__" in vars(base):
            for name, slot in vars(base).items():
                if type(slot) is types.MemberDescriptorType:
                    try:
                        yield name, slot.__get__(value)
                    except AttributeError:  # nothing was put there
                        continue
