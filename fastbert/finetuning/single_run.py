"""One run: a model trained on a task's features with given settings, and what came of it as a report."""

import importlib.util
import json
import math
import os
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from fastbert.training import checkpoints
from fastbert.utils.errors import Resumable
from fastbert.utils.files import strict_json, write_whole
from fastbert.utils.processes import decide_on_rank0
from fastbert.version import __version__

from .best import FOLDER, BestEpoch
from .data import TaskData
from .method import Method

REPORT, CURVES = "report.json", "curves.png"
LOGS = 100  # readings of the training loss in a run


@dataclass(frozen=True)
class Setting:
    """batch_size: examples, or windows, of a step over all processes. warmup: share of the steps. epochs: may be a fraction."""

    batch_size: int = 32
    learning_rate: float = 5e-5
    epochs: float = 3.0
    seed: int = 0
    warmup: float = 0.1
    dropout: float = 0.1
    weight_decay: float = 0.01

    @property
    def name(self) -> str:
        """Of its folder in a grid."""
        return f"batch{self.batch_size}-lr{self.learning_rate:g}-epochs{self.epochs:g}-seed{self.seed}"


def read_report(folder: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The report of a run that was finished in this folder with the same identity, or None."""
    file = folder / REPORT
    if not file.is_file():
        return None
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return report if isinstance(report, dict) and report.get("identity") == identity else None


def run_once(
    method: Method,
    setting: Setting,
    model_folder: Path,
    report_folder: Path,
    identity: dict[str, Any],
    console: Console,
    *,
    precision: str = "float32",
    keep_epoch: str = "best",
) -> dict[str, Any]:
    """Trains, saves the model, then the report, which tells that the run is whole; returns the report.

    While it trains, `report_folder` holds the best epoch (see `best`) and a checkpoint of the last one, from which a run that
    was interrupted goes on: to the same weights, as the order of the data, the states of the optimizer and of the generators
    are in it. On several processes the first writes and all return the same report; every process calls it.

    model_folder: transformers loads it. identity: of the run, for `read_report`. precision: float32 or bf16 (autocast).
    keep_epoch: of `best.WHICH`, whose weights are the result. Raises Resumable where a signal stopped it, OSError where the
    disk took not all.
    """
    from .trainer import FineTuner

    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    task, best = method.task, BestEpoch(report_folder, method, keep_epoch)
    checkpoint = decide_on_rank0(lambda: _where_to_begin(report_folder, best, say))
    facts = {} if checkpoint is None else checkpoints.verify(checkpoint)
    transformers.set_seed(setting.seed)
    model, new = method.build(setting.dropout)
    steps = math.ceil(math.ceil(len(task.train) / setting.batch_size) * setting.epochs)
    tokens = sum(len(feature) for feature in task.train)
    say(f"{setting.name}: {steps:,} steps, {tokens:,} tokens an epoch; new: {', '.join(new) if new else 'no weights'}")

    def show(epoch: float, metrics: dict[str, float]) -> None:
        say(f"  epoch {epoch:.2f}: {', '.join(f'{name} {value:.4g}' for name, value in metrics.items())}")

    arguments = training_arguments(setting, steps, report_folder, precision, console, save=True)
    if facts and facts["processes"] != arguments.world_size:
        say(f"{facts['processes']} processes before, {arguments.world_size} now: other dropout than an uninterrupted run")

    def conclude() -> dict[str, Any]:
        metrics, history = best.metrics, trainer.state.log_history
        assert metrics is not None
        if best.epoch != trainer.state.epoch:
            last = next(entry for entry in reversed(history) if f"eval_{task.headline}" in entry)[f"eval_{task.headline}"]
            say(f"  epoch {best.epoch:.2f} is kept; {task.headline} of the last is {last:.4g}")
        report = {
            "identity": identity,
            "setting": asdict(setting),
            "headline": task.headline,
            "score": metrics[task.headline],
            "epoch": best.epoch,
            "metrics": metrics,
            "degenerate": degenerate(task, metrics, history),
            "baseline": task.baseline(),
            "new_parameters": new,
            "notes": task.notes,
            "steps": steps,
            "seconds": trainer.seconds,
            "history": history,
            **method.report,
            "versions": {"fastbert": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        }
        best.place_in(model_folder, report_folder)
        if importlib.util.find_spec("matplotlib") is None:
            console.print("[yellow]matplotlib is not installed: no pictures will be drawn[/]")
        else:
            from .plots import plot_curves

            plot_curves(history, report_folder / CURVES, headline=task.headline, baseline=report["baseline"])
        written = write_report(report_folder, report)
        best.remove()
        checkpoints.keep_last(report_folder, 0)
        return written

    trainer = FineTuner(model, arguments, method, show=show, best=best, seconds_before=facts.get("seconds", 0.0))
    try:
        if checkpoint is not None and facts["step"] >= steps:  # all that was left is to conclude
            trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        else:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if trainer.stop_signal is not None and trainer.state.global_step < steps:
            done = f"stopped at step {trainer.state.global_step:,} of {steps:,}"
            raise Resumable(f"{done}; {kept(report_folder)}", 128 + trainer.stop_signal)
        return decide_on_rank0(conclude)
    except OSError as error:
        raise OSError(f"{error}; {kept(report_folder)}") from error


def kept(folder: Path) -> str:
    """What an unfinished run has on the disk, for the user."""
    place, found = folder / FOLDER, checkpoints.all_of(folder)
    best = f"the best epoch so far is {place}" if place.is_dir() else f"no epoch was finished in {folder}"
    return f"{best}; --resume continues from {found[0].name if found else 'the beginning of this run'}"


def _where_to_begin(folder: Path, best: BestEpoch, say: Any) -> Path | None:
    """The checkpoint to go on from, with the best epoch that belongs to it, or None for the beginning."""
    checkpoint, refused = checkpoints.last_good(folder)
    for other, reason in refused.items():
        say(f"refused {reason}; kept as {checkpoints.set_aside(other).name}")
    if checkpoint is None:
        best.remove()
        return None
    try:
        best.read()
    except checkpoints.Damaged as error:  # the checkpoint alone cannot tell what was better
        say(f"refused {error}; from the beginning")
        best.remove()
        checkpoints.keep_last(folder, 0)
        return None
    say(f"continuing from {checkpoint}, epoch {json.loads((checkpoint / TRAINER_STATE_NAME).read_text())['epoch']:.2f}")
    return checkpoint


def write_report(folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """The report as strict JSON, where what is not finite is null; returns what was written."""
    text = strict_json(report)
    write_whole(folder / REPORT, text)
    return json.loads(text)


def degenerate(task: TaskData, metrics: dict[str, float], history: list[dict[str, Any]]) -> str | None:
    """Why a run has learned nothing, or None."""
    losses = [entry["loss"] for entry in history if "loss" in entry]
    if not all(math.isfinite(loss) for loss in losses):
        return "the training loss is not finite"
    if not metrics[task.headline] > task.baseline():
        return f"{task.headline} {metrics[task.headline]:.4g} is no better than {task.baseline():.4g}, which takes no input"
    return None


def training_arguments(
    setting: Setting, steps: int, folder: Path, precision: str, console: Console, *, save: bool = False
) -> transformers.TrainingArguments:
    """folder, save: a checkpoint goes there at the end of each epoch, and the one before is removed."""
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
        logging_steps=max(1, steps // LOGS),
        logging_nan_inf_filter=False,
        eval_strategy="epoch",
        save_strategy="epoch" if save else "no",
        save_total_limit=1,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and "WORLD_SIZE" in os.environ else None,
        ddp_find_unused_parameters=False,  # no head leaves a pooler unused
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,
        disable_tqdm=not console.is_terminal,
        report_to=[],
    )
