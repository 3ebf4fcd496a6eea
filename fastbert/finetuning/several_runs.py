"""Several runs, of a grid of settings and of seeds: the best one's model is kept, and all scores are reported."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from fastbert.utils.files import copy_whole
from fastbert.utils.printing import print_line
from fastbert.utils.processes import decide_on_rank0

from .data import TaskData
from .method import Method
from .options import Options, Setting
from .output import CONFUSION, CURVES, MODEL, REPORT, RUNS, read_report, write_report
from .single_run import single_run

Group = tuple[Setting, list[dict[str, Any]]]  # a setting and the reports of its runs, one for each seed


def several_runs(options: Options, method: Method, identity: dict[str, Any], console: Console) -> dict[str, Any]:
    """Runs every setting with every seed, and returns the report of the best run with those of all settings in it.

    The best run is that of the highest score among the runs of the setting whose mean is highest; of the runs so far, only it
    keeps its weights. identity: of `options.identity_of`; each run is finished under that and its own name.
    """
    task = method.task
    seeds = range(options.setting.seed, options.setting.seed + options.seeds)
    groups: list[Group] = []
    best: tuple[float, Path] | None = None
    for setting in options.settings:
        reports, folders = [], []
        for seed in seeds:
            one = replace(setting, seed=seed)
            folder = options.out / RUNS / one.name
            run_identity = {**identity, "run": one.name}
            report = decide_on_rank0(partial(read_report, folder, run_identity))
            if report is None:
                report = single_run(
                    method,
                    one,
                    folder / MODEL,
                    folder,
                    run_identity,
                    console,
                    precision=options.precision,
                    keep_epoch=options.keep_epoch,
                )
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
    return decide_on_rank0(lambda: _finish(options.out, task, groups, kept, identity, console))


def _finish(
    out: Path, task: TaskData, groups: list[Group], winner: Path, identity: dict[str, Any], console: Console
) -> dict[str, Any]:
    """Prints the table of all settings and puts the best run's files into `out`, its report last."""
    _print_table(groups, task.headline, winner, console)
    report = json.loads((winner / REPORT).read_text(encoding="utf-8"))
    for file in (winner / MODEL).iterdir():
        copy_whole(file, out / file.name)
    for name in (CURVES, CONFUSION):
        if (winner / name).is_file():
            copy_whole(winner / name, out / name)
    summary = [_summary(setting, reports) for setting, reports in groups]
    report = write_report(out, {**report, "identity": identity, "best_run": winner.name, "settings": summary})
    shutil.rmtree(winner / MODEL, ignore_errors=True)
    return report


def _summary(setting: Setting, reports: list[dict[str, Any]]) -> dict[str, Any]:
    scores = _scores(reports)
    return {
        "setting": asdict(setting),
        "mean": float(np.mean(scores)),
        "deviation": _deviation(scores),
        "scores": scores,
        "degenerate": _count_degenerate(reports),
    }


def _print_table(groups: list[Group], headline: str, winner: Path, console: Console) -> None:
    from rich.table import Table

    table = Table(title=f"{headline} on the evaluation data")
    for name in ("batch", "rate", "epochs", "seeds", "mean", "deviation", "best", "degenerate"):
        table.add_column(name, justify="right")
    for setting, reports in sorted(groups, key=lambda group: -float(np.mean(_scores(group[1])))):
        scores, degenerate = _scores(reports), _count_degenerate(reports)
        deviation = _deviation(scores)
        table.add_row(
            str(setting.batch_size),
            f"{setting.learning_rate:g}",
            f"{setting.epochs:g}",
            str(len(scores)),
            f"{np.mean(scores):.4g}",
            "" if deviation is None else f"{deviation:.2g}",
            f"{max(scores):.4g}",
            f"[red]{degenerate}[/]" if degenerate else "0",
        )
    console.print(table)
    for _, reports in groups:
        for report in reports:
            if report["degenerate"]:
                print_line(console, f"degenerate: {report['identity']['run']}: {report['degenerate']}")
    console.print(f"kept: {winner.name}", markup=False, highlight=False)


def _scores(reports: Sequence[dict[str, Any]]) -> list[float]:
    """A run whose score is not a number counts as -1, which is below any other."""
    return [-1.0 if report["score"] is None else float(report["score"]) for report in reports]


def _deviation(scores: Sequence[float]) -> float | None:
    """The sample's standard deviation; None for a single score."""
    return float(np.std(scores, ddof=1)) if len(scores) > 1 else None


def _count_degenerate(reports: Sequence[dict[str, Any]]) -> int:
    return sum(report["degenerate"] is not None for report in reports)
