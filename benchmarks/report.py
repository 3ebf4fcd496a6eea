"""The records as a page to read: `python -m benchmarks.report [FOLDER] [--readme README.md]`.

Writes REPORT.md and the plots into the folder of records: every row, every contender, with the reason where there is no
number. With `--readme` the headline tables replace what stands between that file's markers.
"""

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from fastbert.utils.files import write_whole

from .harness import plots
from .harness.records import FASTBERT, TIMED, Contender, Record, Row, families, load_all, suites

BEGIN, END = "<!-- numbers: begin -->", "<!-- numbers: end -->"
NOT_MEASURED, NO_NUMBER = "not measured", "-"
AXES = ("batch_size", "seqlen", "num_layers")
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
CONDITIONS = ("device", "driver", "clocks", "versions", "threads", "command", "commit", "dirty", "seed", "started")
HEADLINES = {"inference": "Inference on real lengths", "pretraining": "A step of pre-training"}
OURS = (FASTBERT, "fastbert, masked-only heads")  # contenders with lines of their own in the headline
NOTE = """\
Medians. spread: half the interquartile range over the median. Tokens are real tokens, padding is never counted. fill: real
tokens over positions of the padded batch. of ceiling: against the rates measured on the device in the same run, for a model its
FLOP utilisation on real tokens. fastbert against this: fastbert's real tokens per second over this contender's. "-": no number
belongs here, or the contender gave none and its row says why. Long details are cut here and whole in the raw JSON.\
"""


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, or every digit before the point."""
    if value is None or math.isnan(value):
        return NOT_MEASURED
    if value == 0:
        return "0"
    return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table of one-line cells."""
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in (head, *lines)]
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(line) + " |" for line in (cells[0], rule, *cells[1:]))


def sequences(row: Row, contender: Contender) -> int | None:
    """Sequences in one call of this contender, or None where it chose its batch and does not say how many."""
    if contender.real_tokens in (None, row.case.real_tokens):
        return row.case.batch_size
    return contender.details.get("micro-batch")


def against(row: Row, peer: Contender, name: str = FASTBERT) -> float | None:
    """Real tokens per second of our contender of this name over the peer's, or None where one of them has no number."""
    ours = row.contender(name)
    if ours is None or ours is peer or ours.status != TIMED or peer.status != TIMED:
        return None
    return row.tokens_per_s(ours) / row.tokens_per_s(peer)


def _share(value: float, ceiling: float | None) -> str:
    return f"{value / ceiling:.1%}" if ceiling and value else NOT_MEASURED


def _columns(record: Record, row: Row, contender: Contender) -> dict[str, str]:
    """The cells of one timed contender by heading; which ones depends on the suite."""
    case, median = row.case, contender.median
    cells = {
        "median ms": number(median * 1e3),
        "spread": f"±{contender.spread:.1%}" if len(contender.seconds) > 1 else NOT_MEASURED,
        "rounds": str(len(contender.seconds)),
        "real tokens/s": number(row.tokens_per_s(contender)),
    }
    if case.suite in ("inference", "pretraining"):
        count = sequences(row, contender)
        cells["sequences/s"] = number(count / median if count else None)
    if case.suite == "inference":
        cells |= {f"p{percent} ms": number(contender.percentile(percent) * 1e3) for percent in (50, 99)}
    rate = row.flops_per_s(contender)
    cells["TFLOP/s"] = number(rate / 1e12 if rate else None)
    cells["of matmul ceiling"] = _share(rate, record.matmul_ceiling(case.dtype, one_thread="one CPU thread" in case.model))
    if case.suite == "kernels":
        moved = case.bytes_moved / median
        cells["GB/s"] = number(moved / 1e9 if moved else None)
        cells["of copy ceiling"] = _share(moved, record.ceilings.get("copy"))
    cells["peak MiB"] = number(None if contender.peak_bytes is None else contender.peak_bytes / 2**20)
    ratio = against(row, contender)
    cells["fastbert against this"] = NO_NUMBER if ratio is None else f"{ratio:.2f}x"
    return cells


def _detail(value: Any) -> str:
    text = str(value)
    if isinstance(value, float):
        text = number(value) if 1e-3 <= abs(value) < 1e15 else f"{value:.2e}"
    return text if len(text) <= 80 else text[:79] + "…"


def suite_table(record: Record, rows: Sequence[Row]) -> str:
    """A line per case and contender."""
    timed = [_columns(record, row, c) for row in rows for c in row.contenders if c.status == TIMED]
    # A suite without one timed contender still lists its contenders and their reasons.
    head = list(timed[0]) if timed else ["median ms"]
    lines = []
    for row in rows:
        for contender in row.contenders:
            details = "; ".join(f"{name}: {_detail(value)}" for name, value in contender.details.items())
            if contender.status == TIMED:
                cells, note = _columns(record, row, contender), details
            else:
                cells = {"median ms": f"**{contender.status}**"}
                note = "; ".join(part for part in (contender.reason or "no reason given", details) if part)
            numbers = [cells.get(name, NO_NUMBER) for name in head]
            lines.append([row.case.title, f"{row.case.fill:.2f}", contender.name, *numbers, note])
    return table(["workload", "fill", "contender", *head, "remarks"], lines)


def slope(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Exponent n of the least-squares fit y = c · xⁿ on a log-log scale, and its largest misfit as a share of y.

    Raises ValueError for fewer than two different x, or a value that is not positive.
    """
    if len({x for x, _ in points}) < 2 or any(x <= 0 or y <= 0 for x, y in points):
        raise ValueError(f"expected positive points at two or more different x, got {list(points)}")
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    mean_x, mean_y = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    exponent = math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys)) / math.fsum((x - mean_x) ** 2 for x in xs)
    misfit = max(abs(math.expm1(y - mean_y - exponent * (x - mean_x))) for x, y in zip(xs, ys))
    return exponent, misfit


def _axis_of(row: Row) -> str | None:
    return next((c.details["axis"] for c in row.contenders if c.details.get("axis") in AXES), None)


def slope_table(rows: Sequence[Row]) -> str:
    """How time and memory of each contender grow with the one quantity that a series of rows varies."""
    lines, used = [], set()
    for axis in AXES:
        for family in families((row for row in rows if _axis_of(row) in (axis, None)), axis):
            if len({getattr(row.case, axis) for row in family}) < 2:
                continue
            used |= {id(row) for row in family}
            case = family[0].case
            fixed = [f"{name} {getattr(case, name)}" for name in AXES if name != axis]
            series = [part for part in (case.model, case.operation, case.direction, *fixed, case.lengths, case.dtype) if part]
            for name in dict.fromkeys(c.name for row in family for c in row.contenders):
                lines.append([", ".join(series), name, axis, *_growth(family, name, axis)])
    alone = sum(id(row) not in used for row in rows)
    text = table(["series", "contender", "over", "from - to", "time grows as", "memory grows as", "largest misfit"], lines)
    remark = "n^s: slope s of the least-squares line on a log-log scale."
    return f"{text}\n\n{remark}" + (f" {alone} rows have no second value to fit a slope with." if alone else "")


def _growth(family: list[Row], name: str, axis: str) -> list[str]:
    found = [(getattr(row.case, axis), c) for row in family if (c := row.contender(name)) is not None and c.status == TIMED]
    times = sorted((x, c.median) for x, c in found)
    memory = sorted((x, c.peak_bytes) for x, c in found if c.peak_bytes)
    cells, misfits = [], []
    for points in (times, memory):
        if len({x for x, _ in points}) < 2:
            cells.append(NOT_MEASURED)
            continue
        exponent, misfit = slope(points)
        cells.append(f"n^{exponent:.2f} ({len(points)} points)")
        misfits.append(misfit)
    span = f"{times[0][0]} - {times[-1][0]}" if times else NO_NUMBER
    return [span, *cells, f"{max(misfits):.0%}" if misfits else NO_NUMBER]


def conditions_table(record: Record) -> str:
    """Every condition the record holds, the usual ones first; 'unknown' where it does not."""
    names = [*CONDITIONS, *(name for name in record.conditions if name not in CONDITIONS)]
    return table(["condition", "value"], [[name, _plain(record.conditions.get(name))] for name in names])


def _plain(value: Any) -> str:
    if value is None or value == "":
        return "unknown"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def ceilings_table(record: Record) -> str:
    lines = [[f"matmul {dtype}", f"{number(rate / 1e12)} TFLOP/s"] for dtype, rate in record.ceilings.get("matmul", {}).items()]
    copy = record.ceilings.get("copy")
    lines = lines or [["matmul", NOT_MEASURED]]
    lines.append(["copy", f"{number(copy / 1e9)} GB/s" if copy else NOT_MEASURED])
    lines += [["how", record.ceilings["how"]]] if "how" in record.ceilings else []
    return table(["ceiling", "measured"], lines)


def section(record: Record, folder: Path, images: dict[str, str]) -> str:
    """One record: conditions, ceilings, a table per suite, plots."""
    name = record.path.relative_to(folder).as_posix()
    parts = [f"## {_plain(record.conditions.get('device'))}: {name}", conditions_table(record), ceilings_table(record)]
    for suite, rows in suites(record.rows).items():
        parts += [f"### {suite}", suite_table(record, rows)]
        if suite == "scaling":
            parts.append(slope_table(rows))
    if not record.rows:
        parts.append("This record holds no row.")
    return "\n\n".join([*parts, *(f"![{kind}, {name}]({file})" for kind, file in images.items())])


def newest(records: Sequence[Record], device_type: str, suite: str) -> tuple[Record, list[Row]] | None:
    """The newest record of a device type with headline rows of a suite, and these rows."""
    for record in reversed(records):
        rows = [row for row in record.rows if row.case.suite == suite]
        rows = [row for row in rows if suite != "inference" or row.case.lengths != "fixed"]
        if rows and record.conditions.get("device_type") == device_type:
            return record, rows
    return None


def headline(records: Sequence[Record]) -> str:
    """The tables for a README: on each device fastbert against every peer, and under which conditions.

    A peer without one number has no column; the line below the table says which and why.
    """
    parts = []
    for suite, title in HEADLINES.items():
        chosen = {device: newest(records, device, suite) for device in DEVICES}
        rows = [row for found in chosen.values() if found for row in found[1]]
        names = list(dict.fromkeys(c.name for row in rows for c in row.contenders if not c.name.startswith(FASTBERT)))
        peers = [name for name in names if any((c := row.contender(name)) and c.status == TIMED for row in rows)]
        lines, conditions = [], []
        for device, found in chosen.items():
            if found is None:
                lines.append([DEVICES[device], *[NOT_MEASURED] * (4 + len(peers))])
                continue
            for row in found[1]:
                ours = [name for name in OURS if name == FASTBERT or row.contender(name) is not None]
                lines += [[DEVICES[device], *_headline_cells(row, peers, name)] for name in ours]
            conditions.append(f"{DEVICES[device]}: {_summary(found[0])}.")
        head = ["device", "workload", "fill rate", "contender", "real tokens/s", *(f"against {peer}" for peer in peers)]
        parts += [f"{title}: fastbert's real tokens per second over each peer's.", table(head, lines)]
        missing = [f"{name} ({_why(rows, name)})" for name in names if name not in peers]
        parts += [f"Without a number: {'; '.join(missing)}."] if missing else []
        parts += conditions
    return "\n\n".join(parts)


def _why(rows: Sequence[Row], name: str) -> str:
    """Why a contender has no number in any of these rows."""
    found = [contender for row in rows if (contender := row.contender(name)) is not None]
    return " or ".join(dict.fromkeys(f"{one.status}: {one.reason or 'no reason given'}" for one in found))


def _headline_cells(row: Row, peers: Sequence[str], name_of_ours: str) -> list[str]:
    ours = row.contender(name_of_ours)
    rate = NOT_MEASURED if ours is None else number(row.tokens_per_s(ours)) if ours.status == TIMED else ours.status
    cells = [row.case.title, f"{row.case.fill:.2f}", name_of_ours, rate]
    for name in peers:
        peer, ratio = row.contender(name), None
        if peer is not None:
            ratio = against(row, peer, name_of_ours)
        missing = NOT_MEASURED if peer is None or peer.status == TIMED else peer.status
        cells.append(missing if ratio is None else f"{ratio:.2f}x")
    return cells


def _summary(record: Record) -> str:
    """The conditions in one sentence."""
    found = record.conditions
    versions = found.get("versions") or {}
    shown = ", ".join(f"{name} {versions[name]}" for name in ("torch", "triton", "transformers") if name in versions)
    commit = str(found.get("commit") or "unknown")[:12] + (" with uncommitted changes" if found.get("dirty") else "")
    threads = f"{_plain(found.get('threads'))} threads, " if found.get("device_type") == "cpu" else ""
    return (
        f"{_plain(found.get('device'))}, {threads}{shown or 'versions unknown'}, commit {commit}, "
        f"{_plain(found.get('started'))}, `{_plain(found.get('command'))}`"
    )


def between_markers(text: str, block: str, name: str) -> str:
    """The text with the block between its two markers.

    Raises ValueError unless each marker is there once, in order.
    """
    found = text.count(BEGIN), text.count(END)
    if found != (1, 1) or text.index(BEGIN) > text.index(END):
        order = " in the wrong order" if found == (1, 1) else ""
        raise ValueError(f"expected {BEGIN} and then {END} once each in {name}, got {found[0]} and {found[1]}{order}")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}"


def build(folder: Path, readme: Path | None = None) -> dict[Path, str | bytes]:
    """Every file to write, with its content.

    Raises ValueError where the folder holds no record or the README lacks its markers.
    """
    if not folder.is_dir():
        raise ValueError(f"expected a folder of records, got {folder}, which is none")
    records = load_all(folder)
    if not records:
        raise ValueError(f"expected at least one record below {folder}, got none")
    files: dict[Path, str | bytes] = {}
    images: dict[Path, dict[str, str]] = {}
    for record in records:
        slug = "-".join(record.path.relative_to(folder).with_suffix("").parts)
        drawn = plots.render(record)
        images[record.path] = {kind: f"{slug}-{kind}.png" for kind in drawn}
        files |= {folder / images[record.path][kind]: image for kind, image in drawn.items()}
    measured = any(record.conditions.get("device_type") == "cuda" for record in records)
    opening = ["# Measurements", *([] if measured else ["**On a GPU nothing is measured yet.**"]), headline(records), NOTE]
    sections = [section(record, folder, images[record.path]) for record in reversed(records)]
    files[folder / "REPORT.md"] = "\n\n".join([*opening, *sections]) + "\n"
    if readme is not None:
        plot = _headline_plot(records, images)
        link = f"\n\n![Measurements]({Path(os.path.relpath(folder / plot, readme.parent)).as_posix()})" if plot else ""
        files[readme] = between_markers(readme.read_text(encoding="utf-8"), headline(records) + link, readme.name)
    return files


def _headline_plot(records: Sequence[Record], images: dict[Path, dict[str, str]]) -> str | None:
    """The first plot of the newest record behind a headline table, a GPU's before a CPU's."""
    found = [newest(records, device, suite) for device in ("cuda", "cpu") for suite in HEADLINES]
    return next((next(iter(images[one[0].path].values())) for one in found if one and images[one[0].path]), None)


def main(
    folder: Annotated[Path, typer.Argument(help="Folder with the records.")] = Path("benchmarks/results"),
    readme: Annotated[Path | None, typer.Option(help="Replace the block between this file's markers as well.")] = None,
) -> None:
    """Write REPORT.md and its plots from every record below the folder."""
    try:
        files = build(folder, readme)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    for path, content in files.items():
        write_whole(path, content)
        typer.echo(str(path))


if __name__ == "__main__":
    typer.run(main)
