"""`qa`: the answer is a part of the context, or, as in SQuAD 2.0, there is none."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastbert.tasks.answers import Answers, best_answers
from fastbert.tasks.features import Feature
from fastbert.tasks.metrics import squad_metrics
from fastbert.tasks.squad import Questions, read_squad
from fastbert.tasks.windows import QA_MAX_LENGTH, QA_STRIDE, ContextWindow, answer_tokens, question_windows
from fastbert.utils.printing import number_of

from .data import DataOptions, TaskData, length_limit


@dataclass
class Spans(TaskData):
    """Questions about contexts.

    asked: the evaluation data. windows: one for each of its features. with_none: questions may have no answer.
    """

    asked: Questions
    windows: list[ContextWindow]
    with_none: bool
    max_answer_length: int

    head = "BertForQuestionAnswering"
    headline = "f1"

    def __post_init__(self) -> None:
        if self.asked.some_unanswerable:
            self.headline = "best_f1"

    def answers(self, outputs: Sequence[np.ndarray]) -> dict[str, Answers]:
        """The n best answers, by the id of the question."""
        grouped: dict[int, list[int]] = {}
        for i, window in enumerate(self.windows):
            grouped.setdefault(window.example, []).append(i)
        found = {}
        for example, indices in grouped.items():
            asked = self.asked.examples[example]
            starts, ends = [outputs[i][:, 0] for i in indices], [outputs[i][:, 1] for i in indices]
            found[asked.key] = best_answers(
                [self.windows[i] for i in indices],
                starts,
                ends,
                asked.context,
                max_answer_length=self.max_answer_length,
                allow_none=self.with_none,
            )
        return found

    def score(self, outputs: Sequence[np.ndarray]) -> dict[str, float]:
        found = self.answers(outputs)
        right = {one.key: [text for text, _ in one.answers] for one in self.asked.examples}
        threshold = 0.0 if self.with_none else None
        metrics = squad_metrics(_texts(found, threshold), right)
        if self.asked.some_unanswerable:
            differences = {key: one.null_difference for key, one in found.items()}
            best = squad_metrics(_texts(found, None), right, differences)
            metrics |= {name: value for name, value in best.items() if name.startswith("best_")}
        return metrics

    def baseline(self) -> float:
        """The better F1 of two constant answers: the whole context, and none."""
        right = {one.key: [text for text, _ in one.answers] for one in self.asked.examples}
        whole = squad_metrics({one.key: one.context for one in self.asked.examples}, right)["f1"]
        return max(whole, squad_metrics(dict.fromkeys(right, ""), right)["f1"])

    def decided(self, metrics: dict[str, float]) -> dict[str, Any]:
        return {"null_threshold": metrics["best_f1_threshold"]} if self.asked.some_unanswerable else {}


def load_questions(options: DataOptions, tokenizer: Any, config: Any) -> TaskData:
    """The task `qa`. Raises InputError where a file has not the format of SQuAD."""
    max_length = length_limit(options.max_length, QA_MAX_LENGTH, config)
    stride = min(QA_STRIDE, max_length // 3) if options.stride is None else options.stride
    train, evaluation = (
        read_squad(file, header=options.header, format_=options.format) for file in (options.train, options.evaluation)
    )
    notes = [f"windows of {max_length} tokens with an overlap of {stride}"]
    windows = _windows(train, tokenizer, max_length, stride, notes)
    features = _labelled(train, windows, notes)
    evaluation_windows = _windows(evaluation, tokenizer, max_length, stride, notes)
    settings = {
        "fastbert_task": {
            "task": "qa",
            "max_length": max_length,
            "stride": stride,
            "max_answer_length": options.max_answer_length,
            "with_none": train.some_unanswerable,
        }
    }
    unlabelled = [Feature(((window.input_ids, window.token_type_ids),)) for window in evaluation_windows]
    return Spans(
        features,
        unlabelled,
        settings,
        notes,
        evaluation,
        evaluation_windows,
        train.some_unanswerable,
        options.max_answer_length,
    )


def _windows(data: Questions, tokenizer: Any, max_length: int, stride: int, notes: list[str]) -> list[ContextWindow]:
    asked, contexts = [one.question for one in data.examples], [one.context for one in data.examples]
    windows = list(question_windows(tokenizer, asked, contexts, max_length=max_length, stride=stride))
    none = sum(not one.answers for one in data.examples)
    without = f", {none:,} without an answer" if none else ""
    notes.append(f"{data.file}: {number_of(len(asked), 'question')}{without}, {number_of(len(windows), 'window')}")
    cut = len({window.example for window in windows if window.question_cut})
    if cut:
        notes.append(f"{data.file}: {number_of(cut, 'question')} cut, so that the context has room")
    return windows


def _labelled(data: Questions, windows: list[ContextWindow], notes: list[str]) -> list[Feature]:
    """Windows with their labels; those without the answer are labelled with [CLS], as in run_squad.py of the original BERT."""
    features, found = [], set()
    several = sum(len(set(one.answers)) > 1 for one in data.examples)
    for window in windows:
        answers = data.examples[window.example].answers
        span = answer_tokens(window, answers[0][1], answers[0][1] + len(answers[0][0])) if answers else None
        if span:
            found.add(window.example)
        start, end = span or (0, 0)
        labels = {"start_positions": start, "end_positions": end}
        features.append(Feature(((window.input_ids, window.token_type_ids),), labels))
    if several:
        notes.append(f"{data.file}: {number_of(several, 'question')} with several answers, of which the first is trained on")
    lost = sum(bool(one.answers) and i not in found for i, one in enumerate(data.examples))
    if lost:
        notes.append(
            f"{data.file}: {number_of(lost, 'answer')} longer than the overlap of windows "
            f"and whole in none: a larger --stride helps"
        )
    return features


def _texts(found: dict[str, Answers], threshold: float | None) -> dict[str, str]:
    chosen = {key: answers.choose(threshold) for key, answers in found.items()}
    return {key: answer.text if answer else "" for key, answer in chosen.items()}
