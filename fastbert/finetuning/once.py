"""One run: a model trained on a task's features with given settings, and what came of it as a report."""

import importlib.util
import json
import math
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from fastbert.checkpoints import quiet
from fastbert.files import strict_json, write_whole
from fastbert.processes import agreed
from fastbert.version import __version__

from .data import TaskData
from .method import Method

REPORT, CURVES, CONFUSION = "report.json", "curves.png", "confusion.png"
PARTIAL = ".partial"
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
) -> dict[str, Any]:
    """Trains, saves the model, then the report, which tells that the run is whole; returns the report.

    On several processes the first writes and all return the same report; every process calls it.
    model_folder: transformers loads it. identity: of the run, for `read_report`. precision: float32 or bf16 (autocast).
    """
    from .trainer import FineTuner

    begin = time.perf_counter()
    task = method.task
    transformers.set_seed(setting.seed)
    model, new = method.build(setting.dropout)
    steps = math.ceil(math.ceil(len(task.train) / setting.batch_size) * setting.epochs)
    tokens = sum(len(feature) for feature in task.train)
    console.print(
        f"{setting.name}: {steps:,} steps, {tokens:,} tokens an epoch; new: {', '.join(new) if new else 'no weights'}",
        markup=False, highlight=False,
    )  # fmt: skip

    def show(epoch: float, metrics: dict[str, float]) -> None:
        values = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        console.print(f"  epoch {epoch:.2f}: {values}", markup=False, highlight=False)

    partial = report_folder / PARTIAL
    arguments = training_arguments(setting, steps, partial, precision, console)
    if arguments.should_save:
        report_folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()

    def conclude() -> dict[str, Any]:
        history, metrics = trainer.state.log_history, trainer.metrics
        report = {
            "identity": identity,
            "setting": asdict(setting),
            "headline": task.headline,
            "score": metrics[task.headline],
            "metrics": metrics,
            "degenerate": degenerate(task, metrics, history),
            "baseline": task.baseline(),
            "new_parameters": new,
            "notes": task.notes,
            "steps": steps,
            "seconds": time.perf_counter() - begin,
            "history": history,
            **method.report,
            "versions": {"fastbert": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        }
        _save(trainer, method, partial, model_folder)
        if importlib.util.find_spec("matplotlib") is None:
            console.print("[yellow]matplotlib is not installed: no pictures will be drawn[/]")
        else:
            from .plots import plot_confusion, plot_curves

            plot_curves(history, report_folder / CURVES, headline=task.headline, baseline=report["baseline"])
            if (confusion := task.confusion(trainer.outputs)) is not None:
                plot_confusion(*confusion, report_folder / CONFUSION)
        return write_report(report_folder, report)

    try:
        trainer = FineTuner(model, arguments, method, show=show)
        trainer.train()
        return agreed(conclude)
    finally:
        if arguments.should_save:
            shutil.rmtree(partial, ignore_errors=True)


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


def _save(trainer: Any, method: Method, partial: Path, folder: Path) -> None:
    """The model and its tokenizer, file by file under their names only when they are whole."""
    tokenizer = method.checkpoint.tokenizer
    assert tokenizer is not None
    method.save(trainer.model, method.task.decided(trainer.metrics), partial)
    with quiet():
        tokenizer.save_pretrained(partial)
    folder.mkdir(parents=True, exist_ok=True)
    for file in partial.iterdir():
        file.replace(folder / file.name)


def training_arguments(
    setting: Setting, steps: int, folder: Path, precision: str, console: Console
) -> transformers.TrainingArguments:
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
        save_strategy="no",
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and "WORLD_SIZE" in os.environ else None,
        ddp_find_unused_parameters=False,  # no head leaves a pooler unused
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,
        disable_tqdm=not console.is_terminal,
        report_to=[],
    )
