"""transformers' Trainer on packed batches: exact gradient accumulation, and a stop before a step with NaN or infinity.

One step is one batch of `data.batches.Plan`, the same on any number of processes. Trainer's epochs are not used: training is
one stream of steps, which can begin at any of them.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from fastbert.data.batches import MicroBatches
from fastbert.data.masking import Masker
from fastbert.data.shards import Shards
from fastbert.kernels.limits import IGNORE_INDEX
from fastbert.training.log_lines import LogLines
from fastbert.training.trainer import OwnDropout, SavingTrainer, StopOnSignal

from . import sharding
from .evaluation import SUMS, held_out_batches, metrics_of, sums_of
from .meter import Meter
from .objectives import Objective
from .shallow import ShallowForPreTraining


class NonFinite(RuntimeError):
    """A gradient became infinite or NaN; the weights are those before the step."""


class PreTrainer(SavingTrainer):
    """Trains a model of `objectives`.

    batches: of this process. create: makes (optimizer, schedule) for the model. held_out: (shards, masker) to evaluate on, or
    None. facts: for the manifest of each checkpoint. tokenizer: saved in each, so that transformers loads it as a whole.
    sharded: FSDP2 over the processes instead of DDP. device_rate: see `Meter`. objective: what the model is trained for.
    lines: see `SavingTrainer`. Batch size, learning rate, fsdp and the like of `args` are not used.
    """

    def __init__(
        self,
        model: nn.Module,
        args: transformers.TrainingArguments,
        batches: MicroBatches,
        create: Callable[[nn.Module], tuple[torch.optim.Optimizer, Any]],
        *,
        held_out: tuple[Shards, Masker] | None = None,
        held_out_samples: int | None = None,
        facts: dict[str, Any] | None = None,
        tokenizer: Any = None,
        sharded: bool = False,
        device_rate: float | None = None,
        objective: Objective | None = None,
        lines: LogLines | None = None,
    ) -> None:
        if args.n_gpu > 1:
            raise ValueError(f"expected one GPU per process (start with torchrun), got {args.n_gpu} in this one")
        evaluated: Any = None if held_out is None else held_out[0]
        super().__init__(
            model=model, args=args, train_dataset=batches, eval_dataset=evaluated, processing_class=tokenizer, lines=lines
        )
        self.model_accepts_loss_kwargs = True  # losses are shares of the whole step, and not divided again
        self.batches, self.create, self.facts = batches, create, facts or {}
        self.held_out, self.held_out_samples = held_out, held_out_samples
        self.sharded = sharded
        self.objective = objective or Objective()
        self.meter = Meter(self, device_rate)
        self.add_callback(self.meter)
        self.add_callback(OwnDropout())

    # Data

    def get_train_dataloader(self) -> DataLoader:
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.batches,
            worker_init_fn=_ignore_signals,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else it draws from the generator of dropout, and a resumed run twice
        )

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Tensor]:
        """The micro-batches of a step, and (labels, pairs) of the whole step over all processes."""
        begin = time.perf_counter()
        self.random_states = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            self.random_states["cuda"] = torch.cuda.get_rng_state()
        samples = [batch for _, batch in zip(range(num_batches), epoch_iterator)]
        labels = sum(int((batch["labels"] != IGNORE_INDEX).sum()) for batch in samples)
        pairs = sum(batch["next_sentence_label"].numel() for batch in samples)
        self.meter.add_wait(time.perf_counter() - begin)
        self.meter.add_batches(samples, labels)
        counts = torch.tensor([labels, pairs], device=device)
        return samples, self.accelerator.reduce(counts) if self.args.world_size > 1 else counts

    # Steps

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels, pairs = num_items_in_batch
        with self.accelerator.autocast():  # accelerate does so only for models that it distributes itself
            outputs = model(**inputs, return_logits=False, num_items_in_batch=labels, num_pairs_in_batch=pairs)
        pairs_loss = outputs.next_sentence_loss  # None without its head
        self.meter.add_losses(outputs.mlm_loss, torch.zeros_like(outputs.loss) if pairs_loss is None else pairs_loss)
        loss = outputs.loss * self.args.world_size  # DDP averages gradients over processes; shares are summed
        return (loss, outputs) if return_outputs else loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = _total_norm(model)
        checked = self._get_grad_norm(model, norm)
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), self.args.max_grad_norm, norm)
        return checked

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm before clipping. Raises NonFinite before the optimizer uses the gradients."""
        grad_norm = sharding.whole(_total_norm(model) if grad_norm is None else grad_norm)
        if not math.isfinite(float(grad_norm)):
            step = self.state.global_step + 1
            raise NonFinite(f"the gradient norm of step {step} is {float(grad_norm)}; no weight was changed by it")
        return grad_norm

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            if self.sharded:
                sharding.shard(self.model.to(self.args.device), self.args.device)
                self.model._is_accelerate_prepared = True  # else accelerate wraps it in DDP
            self.optimizer, self._schedule = self.create(self.model if model is None else model)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        self.lr_scheduler = self._schedule
        return self.lr_scheduler

    # Evaluation

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Losses, accuracies and the perplexity on the held-out samples, whose masks are always the same."""
        if self.held_out is None:
            return {}
        begin = time.perf_counter()
        shards, masker = self.held_out
        process = (self.args.process_index, self.args.world_size)
        tokens = max(int(phase.plan.batch_tokens) for phase in self.batches.phases)
        tokens //= self.args.world_size * self.batches.accumulation
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.args.device)
        try:
            with sharding.gathered(model):
                for batch in held_out_batches(shards, masker, tokens, process, self.held_out_samples):
                    with self.accelerator.autocast():
                        sums += sums_of(model, self._prepare_inputs(batch))
        finally:
            model.train(was_training)
        found = metrics_of(self.accelerator.reduce(sums) if self.args.world_size > 1 else sums, prefix="")
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.objective.named(found).items()}
        self.meter.exclude(time.perf_counter() - begin)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # Checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if isinstance(self.model, ShallowForPreTraining):
            if self.args.should_save:
                self.model.save_pretrained(Path(output_dir or self.args.output_dir))
                self.processing_class.save_pretrained(output_dir)
            return None
        if not self.sharded:
            return super().save_model(output_dir, _internal_call)
        state = sharding.model_state(self.model)
        if self.args.should_save:
            self._save(output_dir, state_dict=state)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if isinstance(self.model, ShallowForPreTraining):
            self.model.load(Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.sharded:
            return super()._save_optimizer_and_scheduler(output_dir)
        state = sharding.optimizer_state(self.model, self.optimizer.optimizer)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        if self.sharded:
            sharding.load_optimizer_state(self.model, self.optimizer.optimizer, state)
        else:
            super()._load_optimizer(state)

    def manifest(self, step: int) -> dict[str, Any]:
        return {"micro-batches seen": step * self.batches.accumulation, **self.facts}

    def saved(self, seconds: float) -> None:
        self.meter.exclude(seconds)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = {**logs, **self.objective.named(self.meter.read())}
        super().log(logs, start_time)


def _total_norm(model: nn.Module) -> Tensor:
    return torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters() if parameter.grad is not None])


def _ignore_signals(_: int) -> None:
    """A signal to the process group does not kill the workers: the parent still needs their batches for its last step."""
    for number in StopOnSignal.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
