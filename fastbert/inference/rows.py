"""What a task of inference reads: rows of texts."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Words:
    """A text that is already split into words, none of them empty."""

    words: tuple[str, ...]


class Row(NamedTuple):
    """One input.

    value: a text, a tuple of two texts, or Words. location: for messages, such as "row 3" or "line 3 of FILE". carried: other
    values of the row, which are written beside its result.
    """

    value: Any
    location: str
    carried: Mapping[str, Any] = MappingProxyType({})
