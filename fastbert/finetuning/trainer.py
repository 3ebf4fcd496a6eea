"""transformers' Trainer on packed batches, with the task's own metrics."""

import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from .method import Method


class FineTuner(Trainer):
    """Trains what a method builds, and scores it on its task's evaluation data. show: called with each evaluation's metrics.

    Of `args`, the batch size is that of training only.
    """

    control: Any

    def __init__(
        self,
        model: nn.Module,
        args: transformers.TrainingArguments,
        method: Method,
        *,
        show: Callable[[float, dict[str, float]], None] | None = None,
    ) -> None:
        task = method.task
        evaluation: Any = task.evaluation
        super().__init__(
            model=model, args=args, train_dataset=method.train, eval_dataset=evaluation, data_collator=method.collate
        )
        self.model_accepts_loss_kwargs = False  # the heads' losses are means over the batch
        self.task, self.method, self.show = task, method, show
        self.outputs: list[Any] = []
        self.metrics: dict[str, float] = {}
        self.remove_callback(PrinterCallback)
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(_Bar())

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The metrics of the model as it is, which `metrics` and `outputs` then hold. Other data is not supported."""
        if eval_dataset is not None:
            raise ValueError("expected no other evaluation data than the task's, got some")
        begin = time.perf_counter()
        model: Any = self.model
        self.outputs = self.method.predict(model, torch.bfloat16 if self.args.bf16 else None)
        self.metrics = self.task.score(self.outputs)
        if self.show:
            self.show(float(self.state.epoch or 0.0), self.metrics)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.metrics.items()}
        metrics[f"{metric_key_prefix}_seconds"] = time.perf_counter() - begin
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _Bar(ProgressCallback):
    """Trainer's bar without its lines of numbers."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        return
