"""The tables of one record: its conditions, its ceilings, and a line for every contender of every row."""

from collections.abc import Sequence
from typing import Any

from .markdown import NO_NUMBER, NOT_MEASURED, number, plain, table
from .records import FASTBERT, TIMED, Contender, Record, Row

CONDITIONS = ("device", "driver", "clocks", "versions", "threads", "command", "commit", "dirty", "seed", "started")


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


def sequences(row: Row, contender: Contender) -> int | None:
    """Sequences in one call of this contender, or None where it chose its batch and does not say how many."""
    if contender.real_tokens in (None, row.case.real_tokens):
        return row.case.batch_size
    return contender.details.get("micro-batch")


def against(row: Row, peer: Contender, name: str = FASTBERT) -> float | None:
    """Real tokens per second of fastbert's contender of this name over the peer's, or None where one has no number."""
    contender = row.contender(name)
    if contender is None or contender is peer or contender.status != TIMED or peer.status != TIMED:
        return None
    return row.tokens_per_s(contender) / row.tokens_per_s(peer)


def _share(value: float, ceiling: float | None) -> str:
    return f"{value / ceiling:.1%}" if ceiling and value else NOT_MEASURED


def _detail(value: Any) -> str:
    text = str(value)
    if isinstance(value, float):
        text = number(value) if 1e-3 <= abs(value) < 1e15 else f"{value:.2e}"
    return text if len(text) <= 80 else text[:79] + "…"


def conditions_table(record: Record) -> str:
    """Every condition the record holds, the usual ones first; 'unknown' where it does not."""
    names = [*CONDITIONS, *(name for name in record.conditions if name not in CONDITIONS)]
    return table(["condition", "value"], [[name, plain(record.conditions.get(name))] for name in names])


def ceilings_table(record: Record) -> str:
    lines = [[f"matmul {dtype}", f"{number(rate / 1e12)} TFLOP/s"] for dtype, rate in record.ceilings.get("matmul", {}).items()]
    copy = record.ceilings.get("copy")
    lines = lines or [["matmul", NOT_MEASURED]]
    lines.append(["copy", f"{number(copy / 1e9)} GB/s" if copy else NOT_MEASURED])
    lines += [["how", record.ceilings["how"]]] if "how" in record.ceilings else []
    return table(["ceiling", "measured"], lines)
