"""The report of `fastbert verify`: a table per section, printed as its rows are computed, and one verdict."""

import importlib.util
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import groupby
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from fastbert.kernels.specs.accuracy import OUT_FACTOR
from fastbert.utils.checkpoints import Checkpoint
from fastbert.utils.printing import number_of
from fastbert.version import __version__

from .rows import GRADIENT_FACTOR, Row

TITLES = {
    "weights": "Weights loaded from the checkpoint",
    "hidden states": "Hidden states",
    "outputs": "Outputs",
    "gradients": "Gradients, the worst parameter of each group",
    "heads": "Every other head on this encoder: outputs, loss and all gradients, the worst of them",
    "kernels": "Triton kernels: outputs and gradients, the worst of them",
}

BAR = 10  # characters
WIDE = 110  # columns, from which on a table has room for the names of parameters


class Report:
    """Collects rows and prints them."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.rows: list[Row] = []
        self.notes: list[str] = []
        self.about: dict[str, Any] = {}

    def begin(self, source: Checkpoint, texts: list[str], dtype: torch.dtype, device: torch.device, kernels: bool) -> None:
        """Prints what is compared. kernels: whether the kernels will be checked too."""
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        self.about = {
            "checkpoint": source.path,
            "class": source.class_name,
            "texts": len(texts),
            "device": name,
            "dtype": str(dtype).removeprefix("torch."),
            "fastbert": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        self.console.print(
            f"[bold]{source.path}[/]\n{source.class_name}, {number_of(len(texts), 'text')}, "
            f"{self.about['dtype']} on {name}; torch "
            f"{torch.__version__}, transformers {transformers.__version__}\n\n"
            f"Each row: the largest difference from float64, by fastbert and by PyTorch's own rounding in "
            f"{self.about['dtype']}. fastbert may err\n{OUT_FACTOR:g} times as much ({GRADIENT_FACTOR:g} times for gradients) "
            "plus half a unit in the last place.\n",
            highlight=False,
        )

        if kernels and importlib.util.find_spec("triton") is None:
            self.notes.append("kernels: not run, Triton is not installed; PyTorch's operations run instead")
        elif kernels and device.type == "cpu":
            self.notes.append("kernels: run by Triton's interpreter, since there is no GPU; the model above ran on PyTorch")

    def add(self, rows: Iterable[Row]) -> None:
        """Prints a table per section, with a spinner while the next row is computed."""
        for section, group in groupby(self._collected(rows), key=lambda row: row.section):
            self._print(section, list(group))

    def end(self) -> bool:
        """Prints notes and verdict; returns whether every row passed."""
        for note in self.notes:
            self.console.print(f"[dim]{note}[/]", highlight=False)
        failed = [row for row in self.rows if not row.passed]
        tensors = sum(row.count for row in self.rows)
        if failed:
            self.console.print(f"[bold red]NOT SAFE[/]: {len(failed)} of {number_of(len(self.rows), 'row')} outside the limit:")
            for row in failed:
                self.console.print(f"  {row.section}, {row.where}: {row.worst}", highlight=False)
        else:
            self.console.print(
                f"[bold green]SAFE TO SWAP[/]: {number_of(tensors, 'tensor')} compared, "
                f"{number_of(len(self.rows), 'row')}, none outside its limit",
                highlight=False,
            )
        return not failed

    def as_dict(self) -> dict[str, Any]:
        """The report as it is written as JSON."""
        rows = [
            {"section": r.section, "where": r.where, **asdict(r.worst), "count": r.count, "passed": r.passed, **_proved(r)}
            for r in self.rows
        ]
        return {**self.about, "notes": self.notes, "passed": all(row.passed for row in self.rows), "rows": rows}

    def _collected(self, rows: Iterable[Row]) -> Iterator[Row]:
        with self.console.status("comparing …"):
            for row in rows:
                self.rows.append(row)
                yield row

    def _print(self, section: str, rows: list[Row]) -> None:
        table = Table(title=TITLES[section], title_justify="left")
        table.add_column("", overflow="fold")
        for name in ("tensors", "fastbert", "PyTorch", "ratio"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("of what is allowed", min_width=BAR + 2)
        has_worst = any(row.worst.name not in ("weights", row.where) for row in rows)
        is_wide = self.console.width >= WIDE
        if has_worst and is_wide:
            table.add_column("worst at", overflow="fold")
        for row in rows:
            worst = row.worst
            ratio = "exact" if worst.error == 0 else "-" if math.isinf(worst.ratio) else f"{worst.ratio:.2f}"
            cells = [row.where, str(row.count), f"{worst.error:.1e}", f"{worst.torch_error:.1e}", ratio, _bar(row)]
            table.add_row(*cells, *([worst.name] if has_worst and is_wide else []))
        self.console.print(table)
        if has_worst and not is_wide:
            for row in rows:
                self.console.print(f"  {row.where}: worst at {row.worst.name}", highlight=False, markup=False)
        for line in proof_lines(rows):
            self.console.print(line, highlight=False)


def proof_lines(rows: Iterable[Row]) -> list[str]:
    """Where the kernels of these rows were proved, those with the same proofs on one line; nothing of a row that failed."""
    together: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for row in rows:
        for head, proofs in (("proved by", row.proved), ("earlier sources were proved by", row.earlier)):
            if proofs and row.passed:
                together.setdefault((head, proofs), []).append(row.where)
    return [f"{head}: {'; '.join(proofs)}\n  {', '.join(names)}" for (head, proofs), names in together.items()]


def _proved(row: Row) -> dict[str, list[str]]:
    if row.section != "kernels":
        return {}
    return {"proved": list(row.proved), "earlier": list(row.earlier)} if row.passed else {"proved": [], "earlier": []}


def _bar(row: Row) -> str:
    used = row.worst.error / row.worst.allowed if row.worst.allowed else 0.0 if row.passed else 1.0
    colour = "green" if row.passed else "red"
    filled = BAR if math.isnan(used) else min(BAR, math.ceil(BAR * used))
    return f"[{colour}]{'━' * filled}[/][dim]{'─' * (BAR - filled)}[/] [{colour}]{'✓' if row.passed else '✗'}[/]"
