"""Two runs against each other: `python -m benchmarks.compare OLD NEW`, each a file or a folder of records.

Prints what moved by more than the noise. A contender is judged relative to the baseline it took turns with, so that a slower
machine is not called a slower kernel. Exit status 1 where fastbert got slower or lost its number, 0 otherwise.
"""

import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .harness.records import FASTBERT, TIMED, Contender, Record, Row, load, load_all

STANDARD_ERRORS = 4  # of a ratio of medians; in simulated rounds without a change, under 4 ratios of 10,000 exceed them
MEDIAN_ERROR = math.sqrt(math.pi / 2) / 0.6745  # standard error of the median of n normal values, times √n / half their IQR
FEWEST_ROUNDS = 3
SLOWER, FASTER, LOST, GAINED, CHANGED = "slower", "faster", "lost", "gained", "changed"
WITHIN_NOISE, NOT_JUDGED, BASELINE = "within the noise", "not judged", "baseline"
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Move:
    """How one contender of one workload changed.

    verdict: 'slower' or 'faster' by more than the noise, 'within the noise'; 'not judged', too few rounds; 'lost' or 'gained'
    its number, 'changed' the kind of its reason; 'baseline', which measures the machine and is not judged. raw: the time of a
    real token now, over what it was. relative: raw over the baseline's, None where there is none. noise: what a factor must
    exceed.
    """

    workload: str
    contender: str
    verdict: str
    raw: float | None = None
    relative: float | None = None
    noise: float | None = None
    note: str = ""

    @property
    def is_regression(self) -> bool:
        return self.contender.startswith(FASTBERT) and self.verdict in (SLOWER, LOST)


def read(path: Path) -> list[Record]:
    """The record in a file, or every record below a folder, oldest first.

    Raises ValueError where there is no row.
    """
    if not path.exists():
        raise ValueError(f"expected a record or a folder of records, got {path}, which does not exist")
    records = load_all(path) if path.is_dir() else [load(path)]
    if not any(record.rows for record in records):
        raise ValueError(f"expected at least one row in {path}, got none")
    return records


def by_workload(records: Sequence[Record], with_device: bool) -> tuple[dict[Key, Row], int]:
    """Rows by device type and workload, the newest of each, and how many older ones that passes over."""
    found: dict[Key, Row] = {}
    for record in records:
        device = (record.conditions.get("device_type"), record.conditions.get("device") if with_device else None)
        for row in record.rows:
            # Series of the scaling suite over different quantities pass through the same case.
            axis = next((c.details["axis"] for c in row.contenders if "axis" in c.details), None)
            found[(*device, axis, *row.case.identity())] = row
    return found, sum(len(record.rows) for record in records) - len(found)


def several_devices(records: Sequence[Record]) -> bool:
    """Whether devices of one type but of different names are there."""
    devices = {(record.conditions.get("device_type"), record.conditions.get("device")) for record in records}
    return len(devices) > len({device_type for device_type, _ in devices})


def judge(old: Row, new: Row, floor: float) -> Iterator[Move]:
    """Every contender that both rows of one workload have. floor: the smallest share that counts as a change."""
    title = old.case.title
    base = old.baseline, new.contender(old.baseline.name)
    machine = _factor(old, new, *base) if base[1] is not None and base[0].status == base[1].status == TIMED else None
    for before in old.contenders:
        after = new.contender(before.name)
        if after is None:
            continue
        if before.status != after.status:
            verdict = LOST if before.status == TIMED else GAINED if after.status == TIMED else CHANGED
            reason = f": {after.reason}" if after.reason else ""
            yield Move(title, before.name, verdict, note=f"{before.status} -> {after.status}{reason}")
        elif before.status == TIMED:
            raw = _factor(old, new, before, after)
            is_base = before.name == old.baseline.name
            relative = None if is_base or machine is None else raw / machine
            involved = [before, after] if relative is None else [before, after, *base]
            noise = _noise(involved, floor)
            verdict = _verdict(raw if relative is None else relative, noise)
            if min(len(contender.seconds) for contender in involved) < FEWEST_ROUNDS:
                verdict = NOT_JUDGED
            if is_base and not before.name.startswith(FASTBERT):
                verdict = BASELINE
            note = "" if relative is not None else "judged raw: " + ("it is the baseline" if is_base else "no baseline")
            yield Move(title, before.name, verdict, raw, relative, noise, note)


def _factor(old: Row, new: Row, before: Contender, after: Contender) -> float:
    """The time of a real token now, over what it was."""
    tokens = (before.real_tokens or old.case.real_tokens) / (after.real_tokens or new.case.real_tokens)
    return after.median / before.median * tokens


def _noise(contenders: Sequence[Contender], floor: float) -> float:
    """The factor that a ratio of these medians may show although nothing changed, from the spreads and numbers of rounds."""
    errors = (MEDIAN_ERROR * contender.spread / math.sqrt(len(contender.seconds)) for contender in contenders)
    return 1 + max(floor, STANDARD_ERRORS * math.hypot(*errors))


def _verdict(factor: float, noise: float) -> str:
    if abs(math.log(factor)) <= math.log(noise):
        return WITHIN_NOISE
    return SLOWER if factor > 1 else FASTER


def only_in(rows: dict[Key, Row], others: dict[Key, Row]) -> Iterator[str]:
    """Workloads, and contenders of shared workloads, that `others` lack."""
    for key, row in rows.items():
        if key not in others:
            yield row.case.title
            continue
        for contender in row.contenders:
            if others[key].contender(contender.name) is None:
                yield f"{row.case.title}: {contender.name}"


def differences(old: Sequence[Record], new: Sequence[Record]) -> Iterator[str]:
    """Differences between the conditions of the two runs that affect times; fastbert's own version may differ."""

    def pairs(record: Record) -> dict[str, str]:
        found = {name: str(record.conditions.get(name, "unknown")) for name in ("device", "driver", "threads")}
        versions = record.conditions.get("versions") or {}
        return found | {name: str(version) for name, version in versions.items() if name != FASTBERT}

    runs = [[pairs(record) for record in run] for run in (old, new)]
    for name in dict.fromkeys(name for run in runs for found in run for name in found):
        before, after = (" and ".join(sorted({found.get(name, "absent") for found in run})) for run in runs)
        if before != after:
            yield f"{name}: {before} -> {after}"


def table(moves: Sequence[Move], title: str) -> Table:
    out = Table(title=title, caption="time per real token, new over old; relative: over what the row's baseline did")
    for name in ("workload", "contender"):
        out.add_column(name, overflow="fold")
    for name in ("raw", "relative", "noise"):
        out.add_column(name, justify="right", no_wrap=True)
    for name in ("verdict", "remarks"):
        out.add_column(name, overflow="fold")
    for move in moves:
        factors = ["" if value is None else f"{value:.3f}x" for value in (move.raw, move.relative)]
        noise = "" if move.noise is None else f"±{move.noise - 1:.1%}"
        verdict = f"[red]{move.verdict}[/red]" if move.is_regression else move.verdict
        out.add_row(escape(move.workload), escape(move.contender), *factors, noise, verdict, escape(move.note))
    return out


def main(
    old: Annotated[Path, typer.Argument(help="A record, or a folder of records.")],
    new: Annotated[Path, typer.Argument(help="The same, of the later run.")],
    floor: Annotated[float, typer.Option(help="Smallest change that counts, as a share, whatever the spreads.")] = 0.02,
) -> None:
    """Print what moved by more than the noise; exit status 1 where fastbert got slower or lost its number."""
    if not 0 <= floor < 1:
        raise typer.BadParameter(f"expected --floor from 0 to below 1, got {floor}")
    try:
        runs = read(old), read(new)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    with_device = any(several_devices(run) for run in runs)
    (before, older), (after, newer) = (by_workload(run, with_device) for run in runs)
    moves = [move for key in before if key in after for move in judge(before[key], after[key], floor)]
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    for line in differences(*runs):
        console.print(f"[yellow]warning[/yellow]: the conditions differ in {escape(line)}")
    moved = [move for move in moves if move.verdict in (SLOWER, FASTER, LOST, GAINED, CHANGED)]
    unjudged = [move for move in moves if move.verdict == NOT_JUDGED]
    for title, shown in (
        ("Moved by more than the noise", moved),
        (f"Not judged: fewer than {FEWEST_ROUNDS} rounds", unjudged),
    ):
        if shown:
            console.print(table(shown, title))
    for where, lines in (("OLD", only_in(before, after)), ("NEW", only_in(after, before))):
        for line in lines:
            console.print(f"only in {where}: {line}", markup=False)
    machine = [move.raw for move in moves if move.verdict == BASELINE and move.raw is not None]
    if machine:
        span = f"{min(machine):.3f}x to {max(machine):.3f}x"
        print(f"baselines: {len(machine)}, {statistics.median(machine):.3f}x as long as before (median; {span})")
    if not moves:
        console.print("[yellow]warning[/yellow]: no contender of one workload in both runs: nothing was compared")
    regressions = sum(move.is_regression for move in moves)
    quiet = sum(move.verdict == WITHIN_NOISE for move in moves)
    counts = f"{quiet} within the noise, {len(unjudged)} not judged"
    print(f"{len(moved)} moved, {regressions} of these are regressions of fastbert; {counts}")
    if older + newer:
        print(f"{older + newer} older measurements of the same workloads passed over")
    raise typer.Exit(1 if regressions else 0)


if __name__ == "__main__":
    typer.run(main)
