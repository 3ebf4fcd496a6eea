"""Rows through a model in packed batches: grouped by length within a bounded window, yielded in their order.

A window is about WINDOW_BATCHES batches. While the model computes one, a thread reads and tokenises the next; no more than
two exist, so memory does not grow with the input. Within a window sequences are sorted by length, longest first, and cut
into batches of a budget of tokens; nothing is padded.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch

from fastbert.utils.errors import InputError

from .rows import Row, Words
from .task import Batch, Encoded, Task

BATCH_TOKENS = {"cpu": 4096, "cuda": 32768}
WINDOW_BATCHES = 64
FIRST_WINDOW_BATCHES = 4  # small, because the model waits for it
WINDOW_ROWS = 16384
WINDOW_CARRIED = 1 << 25  # characters of what the rows of a window carry
CHUNK_ROWS, CHUNK_CHARACTERS = 512, 1 << 20  # tokenised in one call

Report = Callable[[float], None]  # called with the rows done so far, a fraction within a window
Result = TypeVar("Result")
Window = list[tuple[Row, list[Encoded]]]


def rows_of(values: Iterable[Any]) -> Iterator[Row]:
    """Rows of Python values, numbered from 1."""
    return (Row(value, f"row {number}") for number, value in enumerate(values, 1))


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
    reader = _WindowReader(task, rows, budget)
    done = 0
    with ThreadPoolExecutor(1, thread_name_prefix="tokenise") as thread:
        upcoming = thread.submit(reader.read)
        try:
            while window := upcoming.result():
                upcoming = thread.submit(reader.read)
                yield from _results(task, window, budget, report, done)
                done += len(window)
        finally:
            reader.stopped = True


class _WindowReader:
    """Reads and tokenises rows, one window per call. stopped: set from outside to end a call early."""

    def __init__(self, task: Task[Any], rows: Iterator[Row], budget: int) -> None:
        self.task, self.rows = task, rows
        self.tokens, self.max_tokens = FIRST_WINDOW_BATCHES * budget, WINDOW_BATCHES * budget
        self.stopped = False

    def read(self) -> Window:
        """The next window, empty at the end; each is up to twice as large as the one before."""
        window: Window = []
        tokens = carried = 0
        while tokens < self.tokens and len(window) < WINDOW_ROWS and carried < WINDOW_CARRIED and not self.stopped:
            chunk, chunk_carried = self._read_chunk()
            if not chunk:
                break
            carried += chunk_carried
            with self.task.loaded.lock:
                encoded = self.task.encode(chunk)
            window.extend(zip(chunk, encoded))
            tokens += sum(len(sequence.ids) for sequences in encoded for sequence in sequences)
        self.tokens = min(2 * self.tokens, self.max_tokens)
        return window

    def _read_chunk(self) -> tuple[list[Row], int]:
        """(rows, characters of what they carry)."""
        chunk: list[Row] = []
        characters = carried = 0
        for row in islice(self.rows, CHUNK_ROWS):
            chunk.append(row)
            characters += _num_characters(row)
            carried += _carried_size(row.carried)
            if characters >= CHUNK_CHARACTERS or carried >= WINDOW_CARRIED or self.stopped:
                break
        return chunk, carried


def _num_characters(row: Row) -> int:
    """Raises InputError where the row is neither a text nor a pair of texts that UTF-8 can hold."""
    value = row.value
    if not isinstance(value, str | Words) and not (isinstance(value, tuple) and len(value) == 2):
        raise InputError(f"expected a text or a pair of texts, got {type(value).__name__} in {row.location}")
    texts = value.words if isinstance(value, Words) else (value,) if isinstance(value, str) else value
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"expected text, got {type(text).__name__} in {row.location}")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:  # JSON can hold half of a surrogate pair
                raise InputError(f"expected text that UTF-8 can hold, got {text[error.start]!r} in {row.location}") from error
    return sum(map(len, texts))


def _carried_size(value: Any) -> int:
    """Characters of all texts within a JSON value, and one for anything else."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(name) + _carried_size(item) for name, item in value.items())
    return sum(map(_carried_size, value)) if isinstance(value, list) else 1


def _results(task: Task[Result], window: Window, budget: int, report: Report | None, done: int) -> Iterator[tuple[Row, Result]]:
    sequences = [sequence for _, of_row in window for sequence in of_row]
    lengths = np.array([len(sequence.ids) for sequence in sequences], np.int64)
    order = np.argsort(-lengths, kind="stable")
    outputs: list[Any] = [None] * len(sequences)
    device, ready = task.loaded.device, 0
    # Outputs are read one batch late, so that the device always has the next batch to work on.
    previous: tuple[np.ndarray, Batch, Any] | None = None
    for indices in [*_cut(order, lengths, budget), None]:
        with torch.inference_mode():  # ends before each yield, which must not change the caller's mode
            current = None
            if indices is not None:
                batch = Batch.of([sequences[index] for index in indices], device)
                current = indices, batch, task.forward(batch)
            if previous is not None:
                read_indices, read_batch, on_device = previous
                for index, output in zip(read_indices, task.read(read_batch, on_device)):
                    outputs[index] = output
                ready += len(read_indices)
        previous = current
        if report is not None:
            report(done + len(window) * ready / max(len(sequences), 1))
    first = 0
    for row, of_row in window:
        yield row, task.decode(row, of_row, outputs[first : first + len(of_row)])
        first += len(of_row)


def _cut(order: np.ndarray, lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """The order in pieces of at most `budget` tokens, at least one sequence each."""
    ends = np.cumsum(lengths[order])
    start = 0
    while start < len(order):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + budget, side="right")), start + 1)
        yield order[start:stop]
        start = stop
