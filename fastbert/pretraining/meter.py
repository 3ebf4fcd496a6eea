"""Readings for the log, over the steps since the last one: losses, speed, waiting, padding, utilisation, memory."""

import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from fastbert.utils.flops import pretraining_flops

SUMMED = ("mlm_loss", "next_sentence_loss", "tokens", "padded_tokens", "flops")


class Meter(TrainerCallback):
    """Sums of a PreTrainer's steps.

    device_rate: the FLOP/s of one process's device, of which utilisation is a share; None for no utilisation in the log.
    """

    def __init__(self, trainer: Any, device_rate: float | None = None) -> None:
        self.trainer, self.device_rate = trainer, device_rate
        self.reset()

    def reset(self) -> None:
        self.sums: dict[str, Tensor | float] = dict.fromkeys(SUMMED, 0.0)
        self.steps = 0
        self.wait = 0.0
        self.began = time.perf_counter()

    def add_wait(self, seconds: float) -> None:
        """Time of waiting for data."""
        self.wait += seconds

    def exclude(self, seconds: float) -> None:
        """Time that was not training."""
        self.began += seconds

    def add_batches(self, batches: Sequence[dict[str, Any]], num_labels: int) -> None:
        """The packed micro-batches of a step of this process, on the host."""
        seqlens = [batch["cu_seqlens"].diff().tolist() for batch in batches]
        self._add("tokens", sum(map(sum, seqlens)))
        self._add("padded_tokens", sum(len(lengths) * max(lengths) for lengths in seqlens))
        config = self.trainer.model.config
        self._add("flops", pretraining_flops(config, [length for lengths in seqlens for length in lengths], num_labels))

    def add_losses(self, mlm: Tensor, next_sentence: Tensor) -> None:
        self._add("mlm_loss", mlm.detach())
        self._add("next_sentence_loss", next_sentence.detach())

    def _add(self, name: str, value: Tensor | float) -> None:
        self.sums[name] = self.sums[name] + value

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.reset()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps += 1
        if state.global_step >= state.max_steps:
            control.should_log = True  # every run has a reading at its end, however short it is
        state.epoch = self.trainer.batches.epochs_after(state.global_step)  # Trainer takes the whole stream for one epoch

    def read(self) -> dict[str, float]:
        """The readings since the last call; resets the sums. Every process calls it.

        mlm_loss, next_sentence_loss: means over the steps. tokens_per_second: real ones, of all processes. data_wait: share of
        the time. padding_skipped: share of the positions of padded micro-batches that are padding, never computed here. mfu:
        model FLOPs over what the devices could do. memory_gib: the peak so far of PyTorch on this GPU, or without one of
        this process.
        """
        args = self.trainer.args
        elapsed = max(time.perf_counter() - self.began, 1e-9)
        values = torch.tensor([float(self.sums[name]) for name in SUMMED], dtype=torch.float64, device=args.device)
        if args.world_size > 1:
            values = self.trainer.accelerator.reduce(values)
        sums = dict(zip(SUMMED, values.tolist()))
        steps = max(self.steps, 1)
        found = {
            "mlm_loss": sums["mlm_loss"] / steps,
            "next_sentence_loss": sums["next_sentence_loss"] / steps,
            "tokens_per_second": sums["tokens"] / elapsed,
            "data_wait": self.wait / elapsed,
            "padding_skipped": 1.0 - sums["tokens"] / max(sums["padded_tokens"], 1.0),
        }
        if self.device_rate is not None:
            found["mfu"] = sums["flops"] / elapsed / (self.device_rate * args.world_size)
        if (memory := _peak_memory()) is not None:
            found["memory_gib"] = memory / (1 << 30)
        self.reset()
        return found


def _peak_memory() -> float | None:
    """Bytes; None where the system does not say."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
