"""The stream: order, budget, bounds, one alone as among many."""

import threading
import time
from contextlib import nullcontext
from itertools import count, islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fastbert
from fastbert.inference import engine
from fastbert.inference.answering import Answering
from fastbert.inference.classification import Classification
from fastbert.inference.embedding import Embedding
from fastbert.inference.engine import rows_of, stream
from fastbert.inference.masked_words import MaskFilling
from fastbert.inference.next_sentence import NextSentence
from fastbert.inference.rows import Row
from fastbert.inference.tagging import Tagging
from fastbert.inference.task import Batch, Encoded
from fastbert.utils.errors import InputError

ALONE = 1e-5


def numbers(value) -> list[float]:
    """Every number of a result, in order; of text nothing."""
    if isinstance(value, dict):
        return [number for part in value.values() for number in numbers(part)]
    if isinstance(value, list | tuple):
        return [number for part in value for number in numbers(part)]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [] if isinstance(value, str) else [float(value)]


def shape(value):
    """A result without its floats."""
    if isinstance(value, dict):
        return {name: shape(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [shape(part) for part in value]
    return None if isinstance(value, float | np.ndarray) else value


def masked(text: str) -> str:
    words = text.split()
    words[len(words) // 2] = "[MASK]"
    return " ".join(words) + " [MASK]"


TASKS = {
    "embed": ("BertModel", Embedding, lambda text: text),
    "fill-mask": ("BertForPreTraining", MaskFilling, masked),
    "classify": ("BertForSequenceClassification", Classification, lambda text: text),
    "classify pairs": ("BertForSequenceClassification", Classification, lambda text: (text, text[:20])),
    "next": ("BertForPreTraining", NextSentence, lambda text: (text[:30], text[30:])),
    "tag": ("BertForTokenClassification", Tagging, lambda text: text * 3),
    "answer": ("BertForQuestionAnswering", Answering, lambda text: (text[:20], text * 4)),
}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("batch_tokens", [1, 200, 100000])
def test_one_alone_is_as_one_among_many(checkpoints, sentences, name, batch_tokens):
    class_name, kind, make = TASKS[name]
    task = kind(checkpoints[class_name], dtype=torch.float32)
    values = [make(text) for text in sentences]
    together = list(stream(task, rows_of(values), batch_tokens=batch_tokens))
    assert [row.value for row, _ in together] == values
    assert len({tuple(numbers(result)[:8]) for _, result in together}) > len(values) // 2  # the model tells them apart
    for row, result in together[:: 1 if batch_tokens == 200 else 10]:
        ((_, alone),) = stream(task, iter([row]))
        assert shape(alone) == shape(result)
        np.testing.assert_allclose(numbers(result), numbers(alone), rtol=0, atol=ALONE)


class Recorded(Embedding):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.batches, self.threads = [], set()

    def encode(self, rows):
        self.threads.add(threading.current_thread())
        return super().encode(rows)

    def forward(self, batch: Batch):
        self.batches.append([len(one.ids) for one in batch.sequences])
        self.model_thread = threading.current_thread()
        return super().forward(batch)


@pytest.fixture
def task(checkpoints) -> Recorded:
    return Recorded(checkpoints["BertModel"], dtype=torch.float32)


def test_batches_keep_the_budget_and_group_lengths(task, sentences):
    list(stream(task, rows_of(sentences), batch_tokens=128))
    lengths = [length for batch in task.batches for length in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert all(sum(batch) <= 128 for batch in task.batches)
    assert len(task.batches) < 1.3 * sum(lengths) / 128 + 1
    assert task.model_thread not in task.threads


def test_a_sequence_over_the_budget_is_a_batch_of_its_own(task, sentences):
    list(stream(task, rows_of(sentences), batch_tokens=1))
    assert all(len(batch) == 1 for batch in task.batches)


def test_rows_are_read_within_a_bounded_window(task, monkeypatch):
    """However many rows come, only two windows of them are held."""
    monkeypatch.setattr(engine, "WINDOW_BATCHES", 4)
    monkeypatch.setattr(engine, "CHUNK_ROWS", 8)
    read = 0

    def endless():
        nonlocal read
        for read in count(1):  # noqa: B007
            yield "the cat sat on the mat"

    results = stream(task, rows_of(endless()), batch_tokens=64)  # 8 tokens each: 8 rows a batch, 32 a window
    for done, _ in enumerate(islice(results, 500), 1):
        assert read <= done + 2 * 32
    results.close()
    assert task.threads
    assert not [thread for thread in task.threads if thread.is_alive()]


def test_a_stream_that_is_left_reads_no_further(task, monkeypatch):
    monkeypatch.setattr(engine, "FIRST_WINDOW_BATCHES", 1)

    def slow():
        for number in count():
            time.sleep(0.1 if number > 512 else 0.0)
            yield "the cat"

    results = stream(task, rows_of(slow()), batch_tokens=512)
    next(results)
    start = time.monotonic()
    results.close()  # the window begun has 512 rows more
    assert time.monotonic() - start < 20


def test_one_long_text_ends_a_window(task, monkeypatch):
    monkeypatch.setattr(engine, "CHUNK_CHARACTERS", 1000)
    read = []

    def texts():
        for number in range(20):
            read.append(number)
            yield "cat " * 300

    results = stream(task, rows_of(texts()), batch_tokens=16)
    next(results)
    assert len(read) <= 6
    results.close()


def test_the_caller_keeps_its_own_mode(task, sentences):
    for _ in stream(task, rows_of(sentences), batch_tokens=100):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()


def test_an_error_in_the_rows_reaches_the_caller(task):
    def rows():
        yield from ["the cat"] * 2000
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(stream(task, rows_of(rows()), batch_tokens=64))


@pytest.mark.parametrize("value", [5, None, b"x", ("a", "b", "c"), ("a", 5)])
def test_a_row_that_is_no_text_is_named(task, value):
    with pytest.raises(InputError, match=r"expected .*text.*, got .* in row 3"):
        list(stream(task, rows_of(["a", "b", value])))


def test_half_a_surrogate_pair_is_named(task):
    with pytest.raises(InputError, match=r"UTF-8 can hold, got '\\ud800' in row 2"):
        list(stream(task, rows_of(["a", "b \ud800"])))


def test_no_rows_no_results(task):
    assert list(stream(task, iter([]))) == []


def test_what_is_not_finite_is_an_error(checkpoints, sentences):
    model = fastbert.BertModel.from_pretrained(checkpoints["BertModel"])
    torch.nn.init.constant_(model.encoder.layer[1].output.LayerNorm.bias, float("nan"))
    tokenizer = Embedding(checkpoints["BertModel"]).loaded.tokenizer
    with pytest.raises(InputError, match=r"expected finite outputs, got NaN or infinity from .*BertModel"):
        list(stream(Embedding((model, tokenizer)), rows_of(sentences)))


def test_no_budget_is_an_error(task):
    with pytest.raises(ValueError, match="at least one token in a batch, got batch_tokens 0"):
        stream(task, iter([]), batch_tokens=0)


def test_what_rows_carry_bounds_a_window(monkeypatch):
    """Short texts with long columns beside them: the rows of a window are few."""
    monkeypatch.setattr(engine, "WINDOW_CARRIED", 10_000)
    taken: list[int] = []

    def rows():
        for number in range(5000):
            taken.append(number)
            yield Row("a", f"row {number}", {"id": number, "body": ["x" * 50, {"more": "y" * 50}]})

    class Counting:
        loaded = SimpleNamespace(lock=nullcontext())

        def encode(self, some):
            return [[Encoded(np.zeros(3, np.int32))] for _ in some]

    windows = engine._WindowReader(Counting(), rows(), 4096)
    assert len(windows.read()) <= 100
    assert len(taken) <= 100
