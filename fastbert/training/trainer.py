"""transformers' Trainer with atomic checkpoints (see `training.checkpoints`), and a stop at a signal that loses no step."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import Trainer, TrainerCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import SaveStrategy

from fastbert.training import checkpoints
from fastbert.utils.checkpoints import quiet

from .log_lines import LogLines


class SavingTrainer(Trainer):
    """A Trainer whose checkpoints are atomic, and which SIGTERM and Ctrl-C stop after the step under way.

    last_saved: the step of the latest checkpoint of this process. stop_signal: the number of the signal that asked for the
    end, or None. With the save strategy "no" nothing is saved, and signals are not handled. lines: what is printed of it, None
    for nothing.
    """

    optimizer: Any
    control: Any

    def __init__(self, *args: Any, lines: LogLines | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for printer in (PrinterCallback, ProgressCallback):
            self.remove_callback(printer)
        self._lines = lines
        if lines is not None:
            self.add_callback(lines)
        self.last_saved: int | None = None
        self.stop_signal: int | None = None
        self._on_signal = StopOnSignal(self)
        if self.args.save_strategy != SaveStrategy.NO:
            self.add_callback(LogAtSaves())
            self.add_callback(self._on_signal)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        finally:
            self._on_signal.restore()
            if self._lines is not None:
                self._lines.close()

    def manifest(self, step: int) -> dict[str, Any]:
        """Further entries of a checkpoint's manifest, JSON values."""
        return {}

    def saved(self, seconds: float) -> None:
        """Called after each checkpoint. seconds: the time it took."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        begin = time.perf_counter()
        out, step = Path(self.args.output_dir), self.state.global_step
        folder = checkpoints.staging(out, step)
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)  # of a save that was killed
        self.accelerator.wait_for_everyone()
        self._staging = folder
        try:
            with quiet():
                super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpoints.commit(folder / f"checkpoint-{step}", out, step, self.manifest(step))
                folder.rmdir()
                checkpoints.keep_last(out, self.args.save_total_limit or 3)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise_disk_error(error, f"checkpoint-{step} in {out}")
            raise
        finally:
            del self._staging
        self.accelerator.wait_for_everyone()
        self.last_saved = step
        self.saved(time.perf_counter() - begin)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        # To the CPU: each process then moves its own part to its device. PyTorch cannot read onto Trainer's device name, cpu:0.
        self._load_optimizer(torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)

    def _get_output_dir(self, trial: Any) -> str:
        return str(getattr(self, "_staging", None) or super()._get_output_dir(trial))


def raise_disk_error(error: Exception, what: str) -> None:
    """Raises an OSError of one line if the error, of whichever library, is about a write that the disk refused; else returns.

    what: was to be written.
    """
    by_torch = isinstance(error, RuntimeError) and ("PytorchStreamWriter" in str(error) or "inline_container" in str(error))
    by_safetensors = isinstance(error, SafetensorError) and "I/O error" in str(error)
    if isinstance(error, OSError) or by_torch or by_safetensors:
        raise OSError(f"expected to write {what}, got: {str(error).splitlines()[0]}") from error


class OwnDropout(TrainerCallback):
    """Seeds each rank differently, so that every rank draws different dropout masks.

    A resumed run loads the random states of its checkpoint after this.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.manual_seed(args.seed + args.process_index)


class LogAtSaves(TrainerCallback):
    """Logs the loss with each checkpoint, so that a run that is resumed from it logs the same as an uninterrupted one."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log |= control.should_save

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log |= control.should_save


class StopOnSignal(TrainerCallback):
    """Ends a SavingTrainer's run at SIGTERM or Ctrl-C after the step under way, with a checkpoint; at a second one at once."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, trainer: SavingTrainer) -> None:
        self.trainer = trainer
        self.before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # Python calls signal handlers in the main thread only
        for number in self.SIGNALS:
            self.before[number] = signal.signal(number, self.handle)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.restore()

    def restore(self) -> None:
        """Restores the handlers from before the training."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def handle(self, number: int, frame: Any) -> None:
        self.trainer.stop_signal = number
        signal.signal(number, self.before.get(number, signal.SIG_DFL))
        os.write(2, b"\nsaving a checkpoint after this step; once more to stop at once\n")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        asked = torch.tensor(self.trainer.stop_signal or 0, device=args.device)
        if args.world_size > 1:  # all processes stop at the same step
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
            self.trainer.stop_signal = int(asked) or None
        if self.trainer.stop_signal is not None:
            control.should_save = control.should_log = True
            control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Skips the evaluation, and a second checkpoint, of an epoch that a signal cut short."""
        if self.trainer.stop_signal is not None and state.global_step < state.max_steps:
            control.should_log = control.should_evaluate = control.should_save = False
