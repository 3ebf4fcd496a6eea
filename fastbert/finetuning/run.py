"""`fastbert finetune` from options to a folder: one run, or several whose best is kept and whose spread is told."""

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from fastbert.model.frozen import HEAD, SHAPE
from fastbert.model.frozen_heads import Frozen
from fastbert.training import checkpoints
from fastbert.utils.checkpoints import Checkpoint, open_checkpoint
from fastbert.utils.errors import InputError
from fastbert.utils.existing_outputs import (
    check_flags,
    exists_error,
    finished_message,
    first_difference,
    foreign_folder_error,
    other_options_error,
    visible_names,
)
from fastbert.utils.files import check_room, copy_whole, size_of, write_whole
from fastbert.utils.locks import locked_together
from fastbert.utils.processes import decide_on_rank0

from .best import CONFUSION, FOLDER
from .data import DataOptions, TaskData
from .frozen_method import CACHE, FrozenMethod
from .method import Method
from .model import load_model
from .single_run import CURVES, REPORT, Setting, read_report, run_once, training_arguments, write_report

TASKS = ("classify", "pair", "qa", "tag", "choice")
PAPER_BATCH_SIZES, PAPER_LEARNING_RATES, PAPER_EPOCHS = (16, 32), (5e-5, 4e-5, 3e-5, 2e-5), (2.0, 3.0, 4.0)
NEEDED = {"accelerate": "accelerate", "sklearn": "scikit-learn", "scipy": "scipy", "seqeval": "seqeval"}
IDENTITY, RUNS, MODEL = "finetune.json", "runs", "model"
MODEL_FILES = (
    "config.json", "model.safetensors", HEAD, SHAPE, "tokenizer.json", "tokenizer_config.json", "vocab.txt",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """task: one of TASKS. model: a checkpoint. grid: settings to try with every seed from `setting.seed` on; empty for
    `setting` alone. precision: float32 or bf16 (autocast). frozen: train a head on features of the encoder alone. keep_epoch:
    of `best.WHICH`, whose weights and scores are those of a run."""

    task: str
    model: str
    data: DataOptions
    out: Path
    setting: Setting
    grid: tuple[Setting, ...] = ()
    seeds: int = 1
    precision: str = "float32"
    frozen: Frozen | None = None
    keep_epoch: str = "best"


def paper_grid(setting: Setting) -> tuple[Setting, ...]:
    """The settings of the paper (section 4 and appendix A.3); the rest as in `setting`."""
    return tuple(
        replace(setting, batch_size=batch_size, learning_rate=rate, epochs=epochs)
        for batch_size in PAPER_BATCH_SIZES
        for rate in PAPER_LEARNING_RATES
        for epochs in PAPER_EPOCHS
    )


def finetune(options: Options, console: Console, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Trains, and leaves in `out` the best model as transformers loads it, its report and pictures; returns the report.

    resume: go on with what an interrupted call of the same options left, or return the report of a finished one; of several
    runs each leaves its report under runs/, and a finished one is not run again. overwrite: begin again, and remove what an
    earlier call left. Raises InputError, before anything is written, where the options, the files and the checkpoint do not
    fit, `out` holds something else or is written to by another run, or the disk has no room. See `once.run_once` for what an
    interruption leaves.

    Started by torchrun, the processes share every batch and the evaluation: the steps and the loss are those of one process,
    only dropout differs. The first prints and writes; all return the report. Their process group stays for the next call.
    """
    check_flags(resume, overwrite)
    _check_machine(options)
    arguments = training_arguments(options.setting, 1, options.out, options.precision, console)
    console.quiet = console.quiet or not arguments.should_save  # which also lets the processes meet
    checkpoint = open_checkpoint(options.model)
    if not checkpoint.require_tokenizer().is_fast:
        raise InputError(f"expected a fast tokenizer in {options.model}, got a slow one")
    identity = _identity(options)
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    with locked_together(options.out, say):
        report = decide_on_rank0(lambda: _check_folder(options.out, identity, resume, overwrite))
        if report is not None:
            say(finished_message(options.out))
            return report
        task = load_task(options.task, options.data, checkpoint)
        for note in task.notes:
            say(note)
        with _method(options, task, checkpoint, console) as method:
            if arguments.should_save:
                if overwrite:
                    _clear(options.out)
                write_whole(options.out / IDENTITY, json.dumps(identity, indent=1) + "\n")
            say(
                f"{options.out}: the best epoch and a checkpoint of the last are kept as training goes; stopped or killed, the "
                "same command with --resume continues from that checkpoint"
                + (", and no finished run is trained again" if options.grid or options.seeds > 1 else "")
            )
            if not options.grid and options.seeds == 1:
                return run_once(
                    method, options.setting, options.out, options.out, identity, console, precision=options.precision,
                    keep_epoch=options.keep_epoch,
                )  # fmt: skip
            return _several(options, method, identity, console)


@contextmanager
def _method(options: Options, task: TaskData, checkpoint: Checkpoint, console: Console) -> Iterator[Method]:
    """What is asked for; refused now, not after something is written."""
    model = None if options.frozen is not None else load_model(checkpoint, task.head, task.settings)[0]
    if options.frozen is not None:
        method: Method = FrozenMethod(task, checkpoint, options.frozen, options.out, options.precision, console)
    else:
        method = Method(task, checkpoint)
    decide_on_rank0(partial(_check_room, options, method, model))
    del model
    with method:
        yield method


def _check_room(options: Options, method: Method, model: Any) -> None:
    """Raises InputError where the disk has no room for what is on it at once, at the height of it."""
    saved, trained, others = method.disk(model)
    checkpoint = 3 * trained  # weights and Adam's two moments
    # A checkpoint or a best epoch is written before the one that it replaces goes; of a grid the winner so far stays.
    needed = max(2 * saved + checkpoint, saved + 2 * checkpoint) + others + (saved if options.grid or options.seeds > 1 else 0)
    what = f"a best epoch of {saved:,} bytes and a checkpoint of {checkpoint:,}, each beside the one that it replaces"
    check_room(options.out, needed - size_of(options.out), what + (f", and features of {others:,}" if others else ""))


def load_task(name: str, data: DataOptions, checkpoint: Checkpoint) -> TaskData:
    """The features and metrics of a task, one of TASKS, by the checkpoint's tokenizer."""
    tokenizer, config = checkpoint.tokenizer, checkpoint.config
    if name in ("classify", "pair"):
        from .sentences import load_sentences

        return load_sentences(data, tokenizer, config, pair=name == "pair")
    if name == "choice":
        from .sentences import load_choices

        return load_choices(data, tokenizer, config)
    if name == "qa":
        from .questions import load_questions

        return load_questions(data, tokenizer, config)
    if name == "tag":
        from .tagging import load_tagged

        return load_tagged(data, tokenizer, config)
    raise InputError(f"expected a task among {', '.join(TASKS)}, got {name!r}")


def _several(
    options: Options, method: Method, identity: dict[str, Any], console: Console
) -> dict[str, Any]:  # fmt: skip
    """Every setting with every seed; only the best run of the best setting so far keeps its weights."""
    task = method.task
    seeds = range(options.setting.seed, options.setting.seed + options.seeds)
    settings = options.grid or (options.setting,)
    groups: list[tuple[Setting, list[dict[str, Any]]]] = []
    best: tuple[float, Path] | None = None
    for setting in settings:
        reports, folders = [], []
        for seed in seeds:
            one = replace(setting, seed=seed)
            folder = options.out / RUNS / one.name
            mine = {**identity, "run": one.name}
            report = decide_on_rank0(partial(read_report, folder, mine))
            if report is None:
                report = run_once(
                    method, one, folder / MODEL, folder, mine, console, precision=options.precision,
                    keep_epoch=options.keep_epoch,
                )  # fmt: skip
            else:
                console.print(f"{one.name}: finished before, {task.headline} {_scores([report])[0]:.4g}", highlight=False)
            reports.append(report)
            folders.append(folder)
        groups.append((setting, reports))
        scores = _scores(reports)
        winner = folders[int(np.argmax(scores))]
        mean = float(np.mean(scores))
        if best is None or mean > best[0]:
            loser, best = (None if best is None else best[1]), (mean, winner)
        else:
            loser = winner
        for folder in [*folders, *([loser] if loser else [])]:
            if folder != best[1] and int(os.environ.get("RANK", "0")) == 0:
                shutil.rmtree(folder / MODEL, ignore_errors=True)
    assert best is not None
    kept = best[1]
    return decide_on_rank0(lambda: _finish(options, task, groups, kept, identity, console))


def _finish(
    options: Options, task: TaskData, groups: list[tuple[Setting, list[dict[str, Any]]]], winner: Path,
    identity: dict[str, Any], console: Console,
) -> dict[str, Any]:  # fmt: skip
    """The table of all settings, and the best run's files in `out`, its report last."""
    _print_table(groups, task.headline, winner, console)
    report = json.loads((winner / REPORT).read_text(encoding="utf-8"))
    for file in (winner / MODEL).iterdir():
        copy_whole(file, options.out / file.name)
    for name in (CURVES, CONFUSION):
        if (winner / name).is_file():
            copy_whole(winner / name, options.out / name)
    summary = [
        {
            "setting": asdict(setting), "mean": float(np.mean(_scores(reports))), "deviation": _deviation(_scores(reports)),
            "scores": _scores(reports), "degenerate": sum(one["degenerate"] is not None for one in reports),
        }
        for setting, reports in groups
    ]  # fmt: skip
    report = write_report(options.out, {**report, "identity": identity, "best_run": winner.name, "settings": summary})
    shutil.rmtree(winner / MODEL, ignore_errors=True)
    return report


def _print_table(groups: list[tuple[Setting, list[dict[str, Any]]]], headline: str, winner: Path, console: Console) -> None:
    from rich.table import Table

    table = Table(title=f"{headline} on the evaluation data")
    for name in ("batch size", "learning rate", "epochs", "seeds", "mean", "deviation", "best", "degenerate"):
        table.add_column(name, justify="right")
    for setting, reports in sorted(groups, key=lambda group: -float(np.mean(_scores(group[1])))):
        scores, failed = _scores(reports), sum(one["degenerate"] is not None for one in reports)
        deviation = _deviation(scores)
        table.add_row(
            str(setting.batch_size), f"{setting.learning_rate:g}", f"{setting.epochs:g}", str(len(scores)),
            f"{np.mean(scores):.4g}", "" if deviation is None else f"{deviation:.2g}", f"{max(scores):.4g}",
            f"[red]{failed}[/]" if failed else "0",
        )  # fmt: skip
    console.print(table)
    for _, reports in groups:
        for report in reports:
            if report["degenerate"]:
                name = report["identity"]["run"]
                console.print(f"degenerate: {name}: {report['degenerate']}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"kept: {winner.name}", markup=False, highlight=False)


def _scores(reports: Sequence[dict[str, Any]]) -> list[float]:
    """A run whose score is no number counts as -1, which is below any other."""
    return [-1.0 if report["score"] is None else float(report["score"]) for report in reports]


def _deviation(scores: Sequence[float]) -> float | None:
    """Of the sample; None for a single one."""
    return float(np.std(scores, ddof=1)) if len(scores) > 1 else None


def _check_machine(options: Options) -> None:
    for library, name in NEEDED.items():
        if importlib.util.find_spec(library) is None:
            raise InputError(f"expected {name} for fine-tuning, got none installed: pip install 'fastbert-triton[train]'")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and options.frozen is not None:
        raise InputError(
            f"expected one process with --frozen, whose features are computed once and whose head is small, got {world}"
        )
    for batch_size in sorted({one.batch_size for one in options.grid or (options.setting,)}):
        if batch_size % world:
            raise InputError(
                f"expected a batch size (of a step, over all processes) that the {world} processes divide, got {batch_size}"
            )
    if world == 1 and torch.cuda.device_count() > 1:
        raise InputError(
            f"expected torchrun, or CUDA_VISIBLE_DEVICES naming one GPU, got one process that sees {torch.cuda.device_count()}"
        )
    if options.seeds < 1 or options.setting.seed < 0:
        raise InputError(f"expected at least one seed from 0 on, got {options.seeds} from {options.setting.seed}")


def _check_folder(out: Path, identity: dict[str, Any], resume: bool, overwrite: bool) -> dict[str, Any] | None:
    """The report, where the folder holds this very training, finished. Raises InputError where it may not be written to."""
    names = visible_names(out)
    if names and IDENTITY not in names:
        raise foreign_folder_error(out, "finetune", names[0])
    if overwrite or not names:
        return None
    if not resume:
        raise exists_error(out, "is finished" if REPORT in names else "is unfinished")
    try:
        before = json.loads((out / IDENTITY).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"expected the options of a run in {out / IDENTITY}, got {error}") from error
    if changed := first_difference(before, identity):
        raise other_options_error(out, *changed)
    return read_report(out, identity)


def _clear(out: Path) -> None:
    """Removes what an earlier call left; nothing else. The report, by which a run counts as finished, goes first."""
    files = (REPORT, CURVES, CONFUSION, CACHE, *MODEL_FILES, IDENTITY)
    folders = [out / RUNS, out / FOLDER, out / f".{FOLDER}", *out.glob("*checkpoint-*")]
    (out / REPORT).unlink(missing_ok=True)
    for folder in [*folders, *out.glob(f"{checkpoints.STAGING}-*")]:
        shutil.rmtree(folder, ignore_errors=True)
    for name in files:
        (out / name).unlink(missing_ok=True)


def _identity(options: Options) -> dict[str, Any]:
    """The options and what they point to: a training goes on with the same data, not with files of the same name."""
    data = asdict(options.data)
    if options.data.format is None:
        del data["format"]  # as of frozen below
    for name in ("train", "evaluation"):
        data[name] = hashlib.sha256(getattr(options.data, name).read_bytes()).hexdigest()
    values = {name: value for name, value in asdict(options).items() if name != "out"} | {"data": data}
    if options.frozen is None:
        del values["frozen"]  # a folder from before there was the choice goes on
    if options.keep_epoch == "last":
        del values["keep_epoch"]  # the same: then the last was the only choice
    return json.loads(json.dumps(values, default=str))
