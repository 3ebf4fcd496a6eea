"""Question answering: the part of a context of any length that answers a question."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from fastbert.tasks.answers import MAX_ANSWER_LENGTH, N_BEST, best_answers
from fastbert.tasks.windows import MAX_QUESTION_LENGTH, QA_MAX_LENGTH, QA_STRIDE, question_windows
from fastbert.utils.errors import InputError

from .classification import is_pair
from .engine import rows_of, stream
from .loading import require_offsets
from .residents import Model, load, resident
from .rows import Row
from .saved_settings import SavedSettings
from .task import Batch, Encoded, Task, to_host

CLASSES = ("BertForQuestionAnswering",)
Found = list[dict[str, Any]]


class Answering(Task[Found]):
    """The best answers to each (question, context). Arguments: see `answer`."""

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
        self.saved = SavedSettings(self.loaded, "qa")
        self.max_length, self.stride = self.saved.lengths(max_length, stride, (QA_MAX_LENGTH, QA_STRIDE))
        self.top, self.max_answer_length = top, self.saved.get("max_answer_length", max_answer_length, MAX_ANSWER_LENGTH)
        if top < 1 or self.max_answer_length < 1:
            raise InputError(f"expected top and max_answer_length of at least 1, got {top} and {self.max_answer_length}")
        self.null_threshold: float | None
        if isinstance(null_threshold, str):
            # Fine-tuning with unanswerable questions saves no threshold before its first evaluation: 0, as it scores then.
            default = 0.0 if self.saved.get("with_none", None, False) else None
            self.null_threshold = self.saved.get("null_threshold", None, default)
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
            windows = found[window.example]
            if window.question_cut and not windows:
                self.notes.add(f"questions cut at {MAX_QUESTION_LENGTH} tokens or less", rows[window.example].location)
            windows.append(Encoded(window.input_ids, window.token_type_ids, window))
        return found

    def _check(self, row: Row) -> None:
        if not is_pair(row.value):
            raise InputError(f"expected a pair of question and context, got {type(row.value).__name__} in {row.location}")
        for name, text in zip(("questions", "contexts"), row.value):
            if not text.strip():
                self.notes.add(f"empty {name}", row.location)

    def forward(self, batch: Batch) -> Tensor:
        outputs = self.loaded.model(**batch.inputs)
        return torch.stack([outputs.start_logits, outputs.end_logits], -1).float()

    def read(self, batch: Batch, outputs: Any) -> Sequence[np.ndarray]:
        return np.split(to_host(outputs, self), batch.bounds[1:-1])

    def decode(self, row: Row, sequences: Sequence[Encoded], outputs: Sequence[np.ndarray]) -> Found:
        answers = best_answers(
            [window.extra for window in sequences],
            [logits[:, 0] for logits in outputs],
            [logits[:, 1] for logits in outputs],
            row.value[1],
            n_best=max(self.top, N_BEST),
            max_answer_length=self.max_answer_length,
            allow_none=self.null_threshold is not None,
        )
        found: Found = [
            {"answer": answer.text, "score": answer.probability, "start": answer.start, "end": answer.end}
            for answer in answers.best
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
    """Finds the `top` best answers to each question in its context.

    Returns a list of answers per question, best first; for one question and one context its list. An answer is
    {"answer": context[start:end], "score": probability among the 20 (or `top`) best spans, "start", "end": in characters};
    there are none where the context is empty.
    questions, contexts: as many of one as of the other. model: a name, a folder or (model, tokenizer) of class
    BertForQuestionAnswering. null_threshold: None always answers; a number lets a SQuAD 2.0 model put an empty answer first
    where its score exceeds that of the best answer by more than the number; "saved" is what fine-tuning saved, else None.
    max_length, stride: tokens of the windows in which a context is read, so that no part is lost, and tokens that two windows
    share; None for what fine-tuning saved, else 384 and 128 or a third of the window. max_answer_length: in tokens.
    batch_tokens, device, dtype: see `fastbert.embed`. Warns of empty texts and of questions that were cut. Raises InputError,
    naming the row or the checkpoint, for what cannot be run.
    """
    single = isinstance(questions, str)
    if single != isinstance(contexts, str):
        raise InputError("expected one question and one context, or several of both, got one and several")
    pairs: Iterable[Any] = [(questions, contexts)] if single else _pairs(questions, contexts)
    task = Answering(
        resident(model, device, dtype),
        top=top,
        null_threshold=null_threshold,
        max_length=max_length,
        stride=stride,
        max_answer_length=max_answer_length,
    )
    found = [answers for _, answers in stream(task, rows_of(pairs), batch_tokens=batch_tokens)]
    task.notes.warn()
    return found[0] if single else found


def _pairs(questions: Iterable[str], contexts: Iterable[str]) -> Iterable[tuple[str, str]]:
    try:
        yield from zip(questions, contexts, strict=True)
    except ValueError as error:
        raise InputError("expected as many contexts as questions, got fewer of one") from error
