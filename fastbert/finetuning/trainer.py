"""transformers' Trainer on packed batches, with the metrics of a task.

On several processes the rows of each batch are sorted by length and divided in turn. The loss is still the mean over the whole
batch: each process multiplies its mean by its share of the batch's loss terms (rows or labelled tokens), as processes may have
different numbers of them. A process without rows, in a last, small batch, runs one row with a weight of 0. Evaluation data is
divided too, and scored by rank 0.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from torch import nn

from fastbert.tasks.features import Feature, loss_terms
from fastbert.training.log_lines import LogLines
from fastbert.training.trainer import OwnDropout, SavingTrainer
from fastbert.utils.processes import decide_on_rank0

from .best_epoch import BestEpoch
from .method import Method
from .options import Setting

LOG_LINES = 100  # readings of the training loss in a run
PRINTED_LINES = 20  # of these; a grid has many runs


class FineTuner(SavingTrainer):
    """Trains what a method builds, and scores it on its task's evaluation data.

    show: called with (epoch, metrics) after each evaluation. best: keeps the best epoch on the disk, or None for nothing kept.
    seconds_before: of training, before this process resumed it. console: for a line now and then, None for none. tokens: of
    the batches so far, over all processes. The batch size of `args` is that of training only, over all
    processes.
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
        console: Console | None = None,
    ) -> None:
        task = method.task
        evaluation: Any = task.evaluation
        self.tokens, self._read = 0, deque[int]()  # the loader reads a batch ahead
        super().__init__(
            model=model,
            args=args,
            train_dataset=method.train,
            eval_dataset=evaluation,
            data_collator=self._collate,
            lines=LogLines(console, lambda: self.tokens, evaluations=False, most=PRINTED_LINES) if console else None,
        )
        self.model_accepts_loss_kwargs = False  # the heads' losses are means over the batch
        self.task, self.method, self.show, self.best = task, method, show, best
        self.began = time.perf_counter() - seconds_before
        self.outputs: list[Any] = []
        self.metrics: dict[str, float] = {}
        if args.world_size > 1:
            self.add_callback(OwnDropout())

    @property
    def seconds(self) -> float:
        """Of this training so far, with those before it was resumed."""
        return time.perf_counter() - self.began

    def manifest(self, step: int) -> dict[str, Any]:
        return {"seconds": self.seconds, "processes": self.args.world_size}

    def get_train_dataloader(self) -> Any:
        loader: Any = super().get_train_dataloader()
        if self.args.world_size > 1:  # accelerate gives each process other batches, and fills up the last; here all see all
            batches = loader.batch_sampler
            batches.num_processes, batches.process_index, batches.even_batches = 1, 0, False
        return loader

    def _collate(self, rows: Sequence[Feature]) -> dict[str, Any]:
        self._read.append(self.method.num_tokens(rows))
        return self.method.collate(rows) if self.args.world_size == 1 else self._collate_share(rows)

    def _collate_share(self, rows: Sequence[Feature]) -> dict[str, Any]:
        """This process's rows of a batch, and as `share` the weight of its mean loss in the mean over the processes."""
        world = self.args.world_size
        own = sorted(rows, key=len)[self.args.process_index :: world]
        share = world * sum(map(loss_terms, own)) / max(1, sum(map(loss_terms, rows)))
        return {**self.method.collate(own or rows[:1]), "share": share}

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        self.tokens += self._read.popleft()
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if "share" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        share = inputs.pop("share")
        outputs = model(**inputs)
        if share:
            loss = outputs["loss"] * share  # gradients are averaged over the processes
        else:  # a mean over no labelled token is NaN; all weights take part, as the other processes wait for their gradients
            loss = 0.0 * sum(value.sum() for name, value in outputs.items() if name.endswith("logits"))
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The metrics of the model, which `metrics` and, on rank 0, `outputs` then hold. Raises ValueError for other data."""
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
        """The outputs for the evaluation data, gathered from all processes on rank 0; an empty list on the others."""
        model: Any = self.model
        rank, world = self.args.process_index, self.args.world_size
        own = self.method.predict(model, torch.bfloat16 if self.args.bf16 else None, slice(rank, None, world))
        if world == 1:
            return own
        parts: list[Any] = [None] * world
        torch.distributed.gather_object(own, parts if rank == 0 else None)
        if rank > 0:
            return []
        found: list[Any] = [None] * len(self.task.evaluation)
        for number, part in enumerate(parts):
            found[number::world] = part
        return found


def training_arguments(
    setting: Setting, steps: int, folder: Path, precision: str, *, save: bool = False
) -> transformers.TrainingArguments:
    """The arguments of a `FineTuner`.

    steps: of the whole run. folder: for its output. save: whether a checkpoint is written there at the end of each epoch,
    replacing the one before.
    """
    on_cpu = not torch.cuda.is_available()
    return transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=setting.batch_size,
        learning_rate=setting.learning_rate,
        num_train_epochs=setting.epochs,
        warmup_steps=round(setting.warmup * steps),
        weight_decay=setting.weight_decay,
        seed=setting.seed,
        bf16=precision == "bf16",
        logging_steps=max(1, steps // LOG_LINES),
        logging_nan_inf_filter=False,
        eval_strategy="epoch",
        save_strategy="epoch" if save else "no",
        save_total_limit=1,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and "WORLD_SIZE" in os.environ else None,
        ddp_find_unused_parameters=False,  # every head uses its pooler, or has none
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=[],
    )
