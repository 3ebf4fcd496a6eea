"""What a task of inference defines, and its inputs: rows as sequences of tokens, and packed batches of these."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastbert.utils.errors import InputError

from .loading import Loaded
from .notes import Notes
from .rows import Row

Result = TypeVar("Result")


@dataclass(frozen=True)
class Encoded:
    """One sequence for the model.

    ids: int32 (tokens,). types: uint8 (tokens,), or None where all are 0. extra: what the task needs to read the output.
    """

    ids: np.ndarray
    types: np.ndarray | None = None
    extra: Any = None


@dataclass(frozen=True)
class Batch:
    """A packed batch.

    sequences: in order. bounds: int32 (B + 1,), the start of each and the end, on the host. inputs: the model's arguments.
    """

    sequences: Sequence[Encoded]
    bounds: np.ndarray
    inputs: dict[str, Any]

    @classmethod
    def of(cls, sequences: Sequence[Encoded], device: torch.device) -> "Batch":
        """Packs sequences, at least one."""
        lengths = [len(sequence.ids) for sequence in sequences]
        bounds = np.cumsum([0, *lengths], dtype=np.int32)
        types = np.zeros(bounds[-1], np.int64)
        for start, sequence in zip(bounds, sequences):
            if sequence.types is not None:
                types[start : start + len(sequence.ids)] = sequence.types
        inputs: dict[str, Any] = {
            "input_ids": _to(np.concatenate([sequence.ids for sequence in sequences]).astype(np.int64), device),
            "cu_seqlens": _to(bounds, device),
            "max_seqlen": max(lengths),
            "token_type_ids": _to(types, device),
        }
        return cls(sequences, bounds, inputs)


def _to(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class Task(Generic[Result]):
    """What is done with each row, in four steps that the engine calls in order.

    A row becomes one sequence, or several where a long text is read in windows. notes: counts of rows that were cut, empty and
    the like.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.loaded, self.notes = loaded, Notes()

    def encode(self, rows: Sequence[Row]) -> list[list[Encoded]]:
        """The sequences of each row. Runs in another thread than the model. Raises InputError naming a bad row."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Tensor | tuple[Tensor, ...]:
        """The model's outputs, on its device; must not synchronise with it."""
        raise NotImplementedError

    def read(self, batch: Batch, outputs: Any) -> Sequence[Any]:
        """The outputs of each sequence of the batch, on the host."""
        raise NotImplementedError

    def decode(self, row: Row, sequences: Sequence[Encoded], outputs: Sequence[Any]) -> Result:
        """The result of a row from what `read` gave for its sequences."""
        raise NotImplementedError


def to_host(tensor: Tensor, task: Task[Any]) -> np.ndarray:
    """The values on the host. Raises InputError, naming the checkpoint, where one is not finite."""
    array = tensor.cpu().numpy()
    if not np.isfinite(array).all():
        raise InputError(f"expected finite outputs, got NaN or infinity from {task.loaded.name} in {task.loaded.model.dtype}")
    return array
