"""What a checkpoint says of its own fine-tuning, and how inference goes by it: `fastbert_task` in its configuration."""

from typing import Any, TypeVar

from fastbert.utils.errors import InputError

from .loading import Loaded

KINDS: dict[str, type | tuple[type, ...]] = {
    "max_length": int, "stride": int, "max_answer_length": int, "characters": bool, "with_none": bool,
    "null_threshold": (int, float),
}  # fmt: skip
Value = TypeVar("Value")


class Saved:
    """Settings of one of these tasks. taken: those that were used, for the user to read.

    Raises InputError, naming the checkpoint, where a setting is not what fine-tuning writes.
    """

    def __init__(self, loaded: Loaded, *tasks: str) -> None:
        found = getattr(loaded.config, "fastbert_task", None)
        self.name, self.limit = loaded.name, loaded.limit
        self.values: dict[str, Any] = found if isinstance(found, dict) and found.get("task") in tasks else {}
        self.taken: dict[str, Any] = {}
        for name, value in self.values.items():
            kind = KINDS.get(name)
            is_flag = isinstance(value, bool)
            if kind is not None and not (isinstance(value, kind) and is_flag == (kind is bool)):
                raise InputError(f"expected fastbert_task.{name} as fine-tuning writes it in {self.name}, got {value!r}")

    def take(self, name: str, given: Value | None, usual: Value) -> Value:
        """`given` unless it is None; else what the checkpoint says; else `usual`."""
        if given is not None:
            return given
        if name not in self.values:
            return usual
        self.taken[name] = self.values[name]
        return self.values[name]

    def length(self, max_length: int | None, usual: int) -> int:
        """Most tokens of a sequence. usual: where nothing is said. Raises InputError for one above the model's limit."""
        if max_length is not None and not 3 <= max_length <= self.limit:
            raise InputError(f"expected a max_length from 3 to {self.limit}, the limit of {self.name}, got {max_length}")
        return min(self.take("max_length", max_length, usual), self.limit)

    def lengths(self, max_length: int | None, stride: int | None, usual: tuple[int, int]) -> tuple[int, int]:
        """(max_length, stride) of windows. usual: both, where nothing is said; a stride at most a third of the window.

        The saved stride belongs to the saved length, and is not used with another.
        """
        length = self.length(max_length, usual[0])
        fallback = min(usual[1], length // 3)
        if stride is None and length == self.values.get("max_length"):
            return length, self.take("stride", None, fallback)
        return length, fallback if stride is None else stride

    @property
    def line(self) -> str | None:
        """What was taken, for the user; None where nothing was."""
        values = ", ".join(f"{name} {value}" for name, value in self.taken.items() if value is not False)
        return f"{self.name}: as it was fine-tuned, {values}" if values else None
