"""One run: a model trained on a task's features with given settings, and what came of it as a report."""

import importlib.util
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from fastbert.training import checkpoints
from fastbert.utils.errors import Resumable
from fastbert.utils.printing import Say, line_printer, number_of
from fastbert.utils.processes import decide_on_rank0
from fastbert.version import __version__

from .best_epoch import BestEpoch
from .data import TaskData
from .method import Method
from .options import Setting
from .output import BEST, CURVES, write_report
from .trainer import FineTuner, training_arguments


def single_run(
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
    """Trains, saves the model, then the report, which marks the run as finished; returns the report.

    During training `report_folder` holds the best epoch (see `best_epoch`) and a checkpoint of the last one, from which an
    interrupted run is resumed and reaches the same weights: the order of the data and the states of the optimizer and of the
    random generators are in it. On several processes the first writes and all return the same report; every process calls it.

    model_folder: for what transformers loads. identity: of the run, for `output.read_report`. precision: float32 or bf16
    (autocast). keep_epoch: of `best_epoch.WHICH`, whose weights are the result. Raises Resumable where a signal stopped it,
    OSError where the disk is full.
    """
    say = line_printer(console)
    task, best = method.task, BestEpoch(report_folder, method, keep_epoch)
    checkpoint = decide_on_rank0(lambda: _resume_point(report_folder, best, say))
    facts = {} if checkpoint is None else checkpoints.verify(checkpoint)
    transformers.set_seed(setting.seed)
    model, new = method.build(setting.dropout)
    steps = math.ceil(math.ceil(len(task.train) / setting.batch_size) * setting.epochs)
    tokens = sum(len(feature) for feature in task.train)
    say(
        f"{setting.name}: {number_of(steps, 'step')}, {number_of(tokens, 'token')} an "
        f"epoch; new: {', '.join(new) if new else 'no weights'}"
    )

    def show(epoch: float, metrics: dict[str, float]) -> None:
        say(f"  epoch {epoch:.2f}: {', '.join(f'{name} {value:.4g}' for name, value in metrics.items())}")

    arguments = training_arguments(setting, steps, report_folder, precision, save=True)
    if facts and facts["processes"] != arguments.world_size:
        say(
            f"{number_of(facts['processes'], 'process', 'processes')} before, {arguments.world_size} "
            f"now: other dropout than an uninterrupted run"
        )
    before = facts.get("seconds", 0.0)
    trainer = FineTuner(model, arguments, method, show=show, best=best, seconds_before=before, console=console)

    def finish() -> dict[str, Any]:
        report = _report(identity, setting, steps, new, trainer, best, say)
        best.copy_to(model_folder, report_folder)
        if importlib.util.find_spec("matplotlib") is None:
            console.print("[yellow]matplotlib is not installed: no pictures will be drawn[/]")
        else:
            from .plots import plot_curves

            history = trainer.state.log_history
            plot_curves(history, report_folder / CURVES, headline=task.headline, baseline=report["baseline"])
        written = write_report(report_folder, report)
        best.remove()
        checkpoints.keep_last(report_folder, 0)
        return written

    try:
        if checkpoint is not None and facts["step"] >= steps:  # it was interrupted between its last step and its report
            trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        else:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if trainer.stop_signal is not None and trainer.state.global_step < steps:
            done = f"stopped at step {trainer.state.global_step:,} of {steps:,}"
            raise Resumable(f"{done}; {_what_is_kept(report_folder)}", 128 + trainer.stop_signal)
        return decide_on_rank0(finish)
    except OSError as error:
        raise OSError(f"{error}; {_what_is_kept(report_folder)}") from error


def _resume_point(folder: Path, best: BestEpoch, say: Say) -> Path | None:
    """The checkpoint to continue from, with the best epoch that belongs to it, or None to start at the beginning."""
    checkpoint, refused = checkpoints.last_good(folder)
    for other, reason in refused.items():
        say(f"refused {reason}; kept as {checkpoints.set_aside(other).name}")
    if checkpoint is None:
        best.remove()
        return None
    try:
        best.read()
    except checkpoints.Damaged as error:  # the checkpoint alone does not hold an earlier, better epoch
        say(f"refused {error}; starting over")
        best.remove()
        checkpoints.keep_last(folder, 0)
        return None
    say(f"continuing from {checkpoint}, epoch {json.loads((checkpoint / TRAINER_STATE_NAME).read_text())['epoch']:.2f}")
    return checkpoint


def _report(
    identity: dict[str, Any],
    setting: Setting,
    steps: int,
    new_parameters: list[str],
    trainer: FineTuner,
    best: BestEpoch,
    say: Say,
) -> dict[str, Any]:
    """The report of a finished training."""
    task, metrics, history = trainer.task, best.metrics, trainer.state.log_history
    assert metrics is not None
    if best.epoch != trainer.state.epoch:
        last = next(entry for entry in reversed(history) if f"eval_{task.headline}" in entry)[f"eval_{task.headline}"]
        say(f"  epoch {best.epoch:.2f} is kept; {task.headline} of the last is {last:.4g}")
    return {
        "identity": identity,
        "setting": asdict(setting),
        "headline": task.headline,
        "score": metrics[task.headline],
        "epoch": best.epoch,
        "metrics": metrics,
        "degenerate": why_degenerate(task, metrics, history),
        "baseline": task.baseline(),
        "new_parameters": new_parameters,
        "notes": task.notes,
        "steps": steps,
        "seconds": trainer.seconds,
        "history": history,
        **trainer.method.report,
        "versions": {"fastbert": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


def why_degenerate(task: TaskData, metrics: dict[str, float], history: list[dict[str, Any]]) -> str | None:
    """Why a run has learned nothing, or None. history: Trainer's log."""
    losses = [entry["loss"] for entry in history if "loss" in entry]
    if not all(math.isfinite(loss) for loss in losses):
        return "the training loss is not finite"
    if not metrics[task.headline] > task.baseline():
        return f"{task.headline} {metrics[task.headline]:.4g} is no better than {task.baseline():.4g}, which takes no input"
    return None


def _what_is_kept(folder: Path) -> str:
    """What an unfinished run has on the disk, for the user."""
    best, found = folder / BEST, checkpoints.all_of(folder)
    kept = f"the best epoch so far is {best}" if best.is_dir() else f"no epoch was finished in {folder}"
    return f"{kept}; --resume continues from {found[0].name if found else 'the beginning of this run'}"
