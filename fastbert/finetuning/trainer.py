"""transformers' Trainer on packed batches, with the task's own metrics.

On several processes a batch is that of all: each sees its rows and takes every so-many-th of them, the longest dealt out like
the shortest. The loss stays the mean over the whole batch. Processes' own means would weigh equal where one has fewer rows or
labelled tokens than another; so each counts its mean by its share of what the whole batch has, and a process that has nothing
left of a last, small batch takes part with a row that counts 0. Evaluation data is dealt out too, and scored by the first.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import nn
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from fastbert.tasks.features import Feature, loss_terms
from fastbert.training.trainer import OwnDropout, SavingTrainer
from fastbert.utils.processes import decide_on_rank0

from .best import BestEpoch
from .method import Method


class FineTuner(SavingTrainer):
    """Trains what a method builds, and scores it on its task's evaluation data. show: called with each evaluation's metrics.

    best: keeps the best epoch on the disk, or None for nothing kept. seconds_before: of the processes that this one goes on
    from. Of `args`, the batch size is that of training only, over all processes.
    """

    def __init__(
        self,
        model: nn.Module,
        args: transformers.TrainingArguments,
        method: Method,
        *,
        show: Callable[[float, dict[str, float]], None] | None = None,
        best: BestEpoch | None = None,
        seconds_before: float = 0.0,
    ) -> None:
        task = method.task
        evaluation: Any = task.evaluation
        collate = method.collate if args.world_size == 1 else self._collate_share
        super().__init__(model=model, args=args, train_dataset=method.train, eval_dataset=evaluation, data_collator=collate)
        self.model_accepts_loss_kwargs = False  # the heads' losses are means over the batch
        self.task, self.method, self.show, self.best = task, method, show, best
        self.began = time.perf_counter() - seconds_before
        self.outputs: list[Any] = []
        self.metrics: dict[str, float] = {}
        if args.world_size > 1:
            self.add_callback(OwnDropout())
        self.remove_callback(PrinterCallback)
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(_Bar())

    @property
    def seconds(self) -> float:
        """Of this training, those of the processes before this one with it."""
        return time.perf_counter() - self.began

    def manifest(self, step: int) -> dict[str, Any]:
        return {"seconds": self.seconds, "processes": self.args.world_size}

    def get_train_dataloader(self) -> Any:
        loader: Any = super().get_train_dataloader()
        if self.args.world_size > 1:  # accelerate deals out whole batches, and fills up the last; here each process sees all
            batches = loader.batch_sampler
            batches.num_processes, batches.process_index, batches.even_batches = 1, 0, False
        return loader

    def _collate_share(self, rows: Sequence[Feature]) -> dict[str, Any]:
        """This process's rows of a batch, and as `share` what its mean loss counts in the mean over the processes."""
        world = self.args.world_size
        mine = sorted(rows, key=len)[self.args.process_index :: world]
        share = world * sum(map(loss_terms, mine)) / max(1, sum(map(loss_terms, rows)))
        return {**self.method.collate(mine or rows[:1]), "share": share}

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if "share" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        share = inputs.pop("share")
        outputs = model(**inputs)
        if share:
            loss = outputs["loss"] * share  # gradients are averaged over the processes
        else:  # a mean over no labelled token is no number; all weights still take part, for the others wait for them
            loss = 0.0 * sum(value.sum() for name, value in outputs.items() if name.endswith("logits"))
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The metrics of the model as it is, which `metrics` and, on the first process, `outputs` then hold.

        Other data is not supported.
        """
        if eval_dataset is not None:
            raise ValueError("expected no other evaluation data than the task's, got some")
        begin = time.perf_counter()
        self.outputs = self._predict()
        self.metrics = decide_on_rank0(lambda: self.task.score(self.outputs))
        if self.show:
            self.show(float(self.state.epoch or 0.0), self.metrics)
        if self.best is not None:
            best, epoch = self.best, float(self.state.epoch or 0.0)
            decide_on_rank0(lambda: best.offer(self.model, self.metrics, self.outputs, epoch))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.metrics.items()}
        metrics[f"{metric_key_prefix}_seconds"] = time.perf_counter() - begin
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _predict(self) -> list[Any]:
        """The outputs for the evaluation data, each process's own part of it gathered on the first."""
        model: Any = self.model
        rank, world = self.args.process_index, self.args.world_size
        mine = self.method.predict(model, torch.bfloat16 if self.args.bf16 else None, slice(rank, None, world))
        if world == 1:
            return mine
        parts: list[Any] = [None] * world
        torch.distributed.gather_object(mine, parts if rank == 0 else None)
        if rank > 0:
            return []
        found: list[Any] = [None] * len(self.task.evaluation)
        for number, part in enumerate(parts):
            found[number::world] = part
        return found


class _Bar(ProgressCallback):
    """Trainer's bar without its lines of numbers."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        return
