"""The settings that fine-tuning saved with a checkpoint, as `fastbert_task` in its configuration."""

from typing import Any, TypeVar

from fastbert.utils.errors import InputError

from .loading import Loaded

TYPES: dict[str, type | tuple[type, ...]] = {
    "max_length": int,
    "stride": int,
    "max_answer_length": int,
    "characters": bool,
    "with_none": bool,
    "null_threshold": (int, float),
}
Value = TypeVar("Value")


class SavedSettings:
    """The settings of a checkpoint, if it was fine-tuned for one of `tasks`. used: those that were looked up.

    Raises InputError, naming the checkpoint, for a setting that fine-tuning does not write.
    """

    def __init__(self, loaded: Loaded, *tasks: str) -> None:
        found = getattr(loaded.config, "fastbert_task", None)
        self.name, self.limit = loaded.name, loaded.limit
        self.values: dict[str, Any] = found if isinstance(found, dict) and found.get("task") in tasks else {}
        self.used: dict[str, Any] = {}
        for name, value in self.values.items():
            kind = TYPES.get(name)
            is_flag = isinstance(value, bool)
            if kind is not None and not (isinstance(value, kind) and is_flag == (kind is bool)):
                raise InputError(f"expected fastbert_task.{name} as fine-tuning writes it in {self.name}, got {value!r}")

    def get(self, name: str, given: Value | None, default: Value) -> Value:
        """`given` unless it is None, else the saved value, else `default`."""
        if given is not None:
            return given
        if name not in self.values:
            return default
        self.used[name] = self.values[name]
        return self.values[name]

    def length(self, max_length: int | None, default: int) -> int:
        """Most tokens of a sequence, never above the model's limit. Raises InputError for a given one that is."""
        if max_length is not None and not 3 <= max_length <= self.limit:
            raise InputError(f"expected a max_length from 3 to {self.limit}, the limit of {self.name}, got {max_length}")
        return min(self.get("max_length", max_length, default), self.limit)

    def lengths(self, max_length: int | None, stride: int | None, defaults: tuple[int, int]) -> tuple[int, int]:
        """(max_length, stride) of windows. A default stride is at most a third of the window.

        The saved stride belongs to the saved length, and is not used with another.
        """
        length = self.length(max_length, defaults[0])
        fallback = min(defaults[1], length // 3)
        if stride is None and length == self.values.get("max_length"):
            return length, self.get("stride", None, fallback)
        return length, fallback if stride is None else stride

    @property
    def line(self) -> str | None:
        """The used settings in a line for the user; None where there are none."""
        values = ", ".join(f"{name} {value}" for name, value in self.used.items() if value is not False)
        return f"{self.name}: as it was fine-tuned, {values}" if values else None
