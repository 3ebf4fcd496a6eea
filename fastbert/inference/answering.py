"""The part of a context of any length that answers a question."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from fastbert.tasks.answers import MAX_ANSWER_LENGTH, N_BEST, best_answers
from fastbert.tasks.windows import MAX_QUESTION_LENGTH, QA_MAX_LENGTH, QA_STRIDE, question_windows
from fastbert.utils.errors import InputError

from .classification import is_pair
from .engine import Batch, Encoded, Row, Task, host, rows_of, stream
from .loading import Model, load, require_offsets
from .saved import Saved

CLASSES = ("BertForQuestionAnswering",)
Found = list[dict[str, Any]]


class Answering(Task[Found]):
    """The best answers to each (question, context). Arguments as of `answer`."""

    def __init__(
        self,
        model: Model,
        *,
        top: int = 1,
        null_threshold: float | Literal["saved"] | None = "saved",
        max_length: int | None = None,
        stride: int | None = None,
        max_answer_length: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(load(model, CLASSES, device=device, dtype=dtype))
        require_offsets(self.loaded)
        self.saved = Saved(self.loaded, "qa")
        self.max_length, self.stride = self.saved.lengths(max_length, stride, (QA_MAX_LENGTH, QA_STRIDE))
        self.top, self.max_answer_length = top, self.saved.take("max_answer_length", max_answer_length, MAX_ANSWER_LENGTH)
        if top < 1 or self.max_answer_length < 1:
            raise InputError(f"expected top and max_answer_length of at least 1, got {top} and {self.max_answer_length}")
        self.null_threshold: float | None
        if isinstance(null_threshold, str):
            # Fine-tuning with questions that have no answer scores with 0 until evaluation finds a better one.
            usual = 0.0 if self.saved.take("with_none", None, False) else None
            self.null_threshold = self.saved.take("null_threshold", None, usual)
        else:
            self.null_threshold = null_threshold

    def encode(self, rows: Sequence[Row]) -> list[list[Encoded]]:
        for row in rows:
            self._check(row)
        questions, contexts = [row.value[0] for row in rows], [row.value[1] for row in rows]
        found: list[list[Encoded]] = [[] for _ in rows]
        for window in question_windows(
            self.loaded.tokenizer, questions, contexts, max_length=self.max_length, stride=self.stride
        ):
            several = found[window.example]
            if window.question_cut and not several:
                self.notes.add(f"questions cut at {MAX_QUESTION_LENGTH} tokens or less", rows[window.example].place)
            several.append(Encoded(window.input_ids, window.token_type_ids, window))
        return found

    def _check(self, row: Row) -> None:
        if not is_pair(row.value):
            raise InputError(f"expected a pair of question and context, got {type(row.value).__name__} in {row.place}")
        for name, text in zip(("questions", "contexts"), row.value):
            if not text.strip():
                self.notes.add(f"empty {name}", row.place)

    def forward(self, batch: Batch) -> Tensor:
        outputs = self.loaded.model(**batch.inputs)
        return torch.stack([outputs.start_logits, outputs.end_logits], -1).float()

    def read(self, batch: Batch, outputs: Any) -> Sequence[np.ndarray]:
        return np.split(host(outputs, self), batch.bounds[1:-1])

    def decode(self, row: Row, sequences: Sequence[Encoded], outcomes: Sequence[np.ndarray]) -> Found:
        answers = best_answers(
            [one.extra for one in sequences], [one[:, 0] for one in outcomes], [one[:, 1] for one in outcomes], row.value[1],
            n_best=max(self.top, N_BEST), max_answer_length=self.max_answer_length,
            allow_none=self.null_threshold is not None,
        )  # fmt: skip
        found: Found = [
            {"answer": one.text, "score": one.probability, "start": one.start, "end": one.end} for one in answers.best
        ]
        if self.null_threshold is not None and answers.choose(self.null_threshold) is None:
            found.insert(0, {"answer": "", "score": answers.null_probability, "start": 0, "end": 0})
        return found[: self.top]


@overload
def answer(  # type: ignore[overload-overlap]  # a str is an Iterable[str] too
    questions: str,
    contexts: str,
    model: Model,
    *,
    top: int = ...,
    null_threshold: float | Literal["saved"] | None = ...,
    max_length: int | None = ...,
    stride: int | None = ...,
    max_answer_length: int | None = ...,
    batch_tokens: int | None = ...,
    device: torch.device | str | None = ...,
    dtype: torch.dtype | None = ...,
) -> Found: ...


@overload
def answer(
    questions: Iterable[str],
    contexts: Iterable[str],
    model: Model,
    *,
    top: int = ...,
    null_threshold: float | Literal["saved"] | None = ...,
    max_length: int | None = ...,
    stride: int | None = ...,
    max_answer_length: int | None = ...,
    batch_tokens: int | None = ...,
    device: torch.device | str | None = ...,
    dtype: torch.dtype | None = ...,
) -> list[Found]: ...


def answer(
    questions: str | Iterable[str],
    contexts: str | Iterable[str],
    model: Model,
    *,
    top: int = 1,
    null_threshold: float | Literal["saved"] | None = "saved",
    max_length: int | None = None,
    stride: int | None = None,
    max_answer_length: int | None = None,
    batch_tokens: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> list[Found] | Found:
    """For each question its `top` best answers in its context, best first; for one question and one context its answers.

    Each is {"answer": context[start:end], "score": probability among the 20 best (or `top`) spans, "start", "end": in
    characters}; none where the context is empty. Texts are read in windows of max_length tokens that share `stride` (None for
    128 or a third of the window), so no part of a context is lost. Where the checkpoint was fine-tuned by fastbert, None means
    the lengths, and "saved" the null_threshold, that it holds.
    questions, contexts: as many of one as of the other. null_threshold: None always answers, as "saved" does where
    nothing is saved; a number lets a SQuAD 2.0 model say that there is no answer, as an empty one that comes first, where that
    scores better than the best answer by more.
    model: a name, a folder or (model, tokenizer) of class BertForQuestionAnswering. max_answer_length: in tokens.
    batch_tokens, device, dtype: as of `fastbert.embed`. Warns of empty texts and of questions that were cut. Raises
    InputError, naming the row or the checkpoint, for what cannot be run.
    """
    single = isinstance(questions, str)
    if single != isinstance(contexts, str):
        raise InputError("expected one question and one context, or several of both, got one and several")
    pairs: Iterable[Any] = [(questions, contexts)] if single else _pairs(questions, contexts)
    task = Answering(
        model, top=top, null_threshold=null_threshold, max_length=max_length, stride=stride,
        max_answer_length=max_answer_length, device=device, dtype=dtype,
    )  # fmt: skip
    found = [answers for _, answers in stream(task, rows_of(pairs), batch_tokens=batch_tokens)]
    task.notes.warn()
    return found[0] if single else found


def _pairs(questions: Iterable[str], contexts: Iterable[str]) -> Iterable[tuple[str, str]]:
    try:
        yield from zip(questions, contexts, strict=True)
    except ValueError as error:
        raise InputError("expected as many contexts as questions, got fewer of one") from error
