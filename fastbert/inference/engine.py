"""Rows through a model in packed batches: grouped by length within a bounded window, yielded in the order they came.

A window is about WINDOW_BATCHES batches. While the model computes one, a thread reads and tokenises the next; no more than
two exist, so memory does not grow with the input. Within a window sequences are sorted by length, longest first, and cut
into batches of a budget of tokens; nothing is padded.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastbert.utils.errors import InputError

from .loading import Loaded
from .notes import Notes

BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}
WINDOW_BATCHES = 64
FIRST_WINDOW_BATCHES = 4  # the model waits for the first window: a small one
WINDOW_ROWS = 16384
CHUNK_ROWS, CHUNK_CHARACTERS = 512, 1 << 20  # what is tokenised in one call
WINDOW_CARRIED = 1 << 25  # characters of what the rows of a window carry

# How a pass tells its progress: rows done so far, a part of a window in proportion.
Report = Callable[[float], None]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Words:
    """A text that is cut into words already, none of them empty."""

    words: tuple[str, ...]


class Row(NamedTuple):
    """value: a text, a tuple of two texts, or Words. place: what an error calls it, such as "row 3" or "line 3 of FILE".

    carried: what else the row has, which is written beside its result.
    """

    value: Any
    place: str
    carried: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Encoded:
    """One sequence for the model. ids: int32 (tokens,). types: uint8 (tokens,), or None where all are 0.

    extra: what the task needs to read the outcome.
    """

    ids: np.ndarray
    types: np.ndarray | None = None
    extra: Any = None


@dataclass(frozen=True)
class Batch:
    """sequences: of the batch, in order. bounds: int32 (B + 1,), where each begins, on the host. inputs: for the model."""

    sequences: Sequence[Encoded]
    bounds: np.ndarray
    inputs: dict[str, Any]

    @classmethod
    def of(cls, sequences: Sequence[Encoded], device: torch.device) -> "Batch":
        lengths = [len(one.ids) for one in sequences]
        bounds = np.cumsum([0, *lengths], dtype=np.int32)
        inputs: dict[str, Any] = {
            "input_ids": _to(np.concatenate([one.ids for one in sequences]).astype(np.int64), device),
            "cu_seqlens": _to(bounds, device),
            "max_seqlen": max(lengths),
        }
        types = np.zeros(bounds[-1], np.int64)
        for start, one in zip(bounds, sequences):
            if one.types is not None:
                types[start : start + len(one.ids)] = one.types
        inputs["token_type_ids"] = _to(types, device)
        return cls(sequences, bounds, inputs)


def _to(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class Task(Generic[Result]):
    """What is done with each row. A row becomes one sequence or several (windows of a long text)."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded, self.notes = loaded, Notes()

    def encode(self, rows: Sequence[Row]) -> list[list[Encoded]]:
        """The sequences of each row; runs beside the model, in another thread. Raises InputError naming a bad row."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> Tensor | tuple[Tensor, ...]:
        """What is read later, on the model's device; must not wait for it."""
        raise NotImplementedError

    def read(self, batch: Batch, outputs: Any) -> Sequence[Any]:
        """An outcome for each sequence of the batch, on the host."""
        raise NotImplementedError

    def decode(self, row: Row, sequences: Sequence[Encoded], outcomes: Sequence[Any]) -> Result:
        """The result of a row from the outcomes of its sequences."""
        raise NotImplementedError


def stream(
    task: Task[Result], rows: Iterable[Row], *, batch_tokens: int | None = None, report: Report | None = None
) -> Generator[tuple[Row, Result], None, None]:
    """Each row and its result, in the order of the rows, which are read lazily.

    batch_tokens: most tokens of a batch, unless one sequence has more; None for BATCH_TOKENS of the device.
    Raises ValueError for batch_tokens below 1, and what the task raises.
    """
    device = task.loaded.device
    budget = BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"]) if batch_tokens is None else batch_tokens
    if budget < 1:
        raise ValueError(f"expected at least one token in a batch, got batch_tokens {budget}")
    return _stream(task, iter(rows), budget, report)


def _stream(
    task: Task[Result], rows: Iterator[Row], budget: int, report: Report | None
) -> Generator[tuple[Row, Result], None, None]:
    windows = _Windows(task, rows, budget)
    done = 0
    with ThreadPoolExecutor(1, thread_name_prefix="tokenise") as thread:
        coming = thread.submit(windows.make)
        try:
            while window := coming.result():
                coming = thread.submit(windows.make)
                yield from _results(task, window, budget, report, done)
                done += len(window)
        finally:
            windows.stopped = True


class _Windows:
    """Makes one window of tokenised rows after the other, each in one call."""

    def __init__(self, task: Task[Any], rows: Iterator[Row], budget: int) -> None:
        self.task, self.rows = task, rows
        self.tokens, self.most = FIRST_WINDOW_BATCHES * budget, WINDOW_BATCHES * budget
        self.stopped = False

    def make(self) -> list[tuple[Row, list[Encoded]]]:
        window: list[tuple[Row, list[Encoded]]] = []
        tokens = carried = 0
        while tokens < self.tokens and len(window) < WINDOW_ROWS and carried < WINDOW_CARRIED and not self.stopped:
            chunk, more = self._chunk()
            if not chunk:
                break
            carried += more
            encoded = self.task.encode(chunk)
            window.extend(zip(chunk, encoded))
            tokens += sum(len(one.ids) for sequences in encoded for one in sequences)
        self.tokens = min(2 * self.tokens, self.most)
        return window

    def _chunk(self) -> tuple[list[Row], int]:
        """(rows, characters of what they carry)."""
        chunk: list[Row] = []
        characters = carried = 0
        for row in islice(self.rows, CHUNK_ROWS):
            chunk.append(row)
            characters += _length(row)
            carried += _size(row.carried)
            if characters >= CHUNK_CHARACTERS or carried >= WINDOW_CARRIED or self.stopped:
                break
        return chunk, carried


def _length(row: Row) -> int:
    """Characters of the row. Raises InputError where it is neither a text nor a pair of texts that UTF-8 can hold."""
    value = row.value
    if not isinstance(value, str | Words) and not (isinstance(value, tuple) and len(value) == 2):
        raise InputError(f"expected a text or a pair of texts, got {type(value).__name__} in {row.place}")
    texts = value.words if isinstance(value, Words) else (value,) if isinstance(value, str) else value
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"expected text, got {type(text).__name__} in {row.place}")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
                raise InputError(f"expected text that UTF-8 can hold, got {text[error.start]!r} in {row.place}") from error
    return sum(map(len, texts))


def _size(value: Any) -> int:
    """Characters of the texts within, and one for anything else."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(name) + _size(one) for name, one in value.items())
    return sum(map(_size, value)) if isinstance(value, list) else 1


def _results(
    task: Task[Result], window: list[tuple[Row, list[Encoded]]], budget: int, report: Report | None, done: int
) -> Iterator[tuple[Row, Result]]:
    sequences = [one for _, several in window for one in several]
    lengths = np.array([len(one.ids) for one in sequences], np.int64)
    order = np.argsort(-lengths, kind="stable")
    outcomes: list[Any] = [None] * len(sequences)
    device, ready = task.loaded.device, 0
    # Read one batch late, so that the device always has the next one to work on.
    before: tuple[np.ndarray, Batch, Any] | None = None
    for places in [*_cut(order, lengths, budget), None]:
        with torch.inference_mode():  # left at each yield: the caller's mode is its own
            running = None
            if places is not None:
                batch = Batch.of([sequences[place] for place in places], device)
                running = places, batch, task.forward(batch)
            if before is not None:
                read_places, read_batch, outputs = before
                for place, outcome in zip(read_places, task.read(read_batch, outputs)):
                    outcomes[place] = outcome
                ready += len(read_places)
        before = running
        if report is not None:
            report(done + len(window) * ready / max(len(sequences), 1))
    first = 0
    for row, several in window:
        yield row, task.decode(row, several, outcomes[first : first + len(several)])
        first += len(several)


def _cut(order: np.ndarray, lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """The order in pieces of at most `budget` tokens, at least one sequence each."""
    ends = np.cumsum(lengths[order])
    start = 0
    while start < len(order):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + budget, side="right")), start + 1)
        yield order[start:stop]
        start = stop


def host(tensor: Tensor, task: Task[Any]) -> np.ndarray:
    """The values on the host. Raises InputError, naming the checkpoint, where one is not finite."""
    array = tensor.cpu().numpy()
    if not np.isfinite(array).all():
        raise InputError(f"expected finite outputs, got NaN or infinity from {task.loaded.name} in {task.loaded.model.dtype}")
    return array


def rows_of(values: Iterable[Any]) -> Iterator[Row]:
    """Rows of values given in Python, counted from 1."""
    return (Row(value, f"row {number}") for number, value in enumerate(values, 1))
