"""The few numbers of a README: text of many lengths, in one small table and one chart, from the newest record of a device."""

import hashlib
import io
from collections.abc import Sequence

from matplotlib.ticker import EngFormatter

from .headline import DEVICES, Chosen, conditions_line, newest
from .markdown import NOT_MEASURED, number, table
from .plots import new_figure
from .records import FASTBERT, TIMED, Record, Row

SHOWN = ("transformers, SDPA", "transformers, torch.compile", FASTBERT)
COLOURS = {"transformers, SDPA": "#b8b8b8", "transformers, torch.compile": "#7d7d7d", FASTBERT: "#3f51b5"}
WORKLOADS = {
    "books": "lengths of sentences in books",
    "wiki-qa": "of questions with paragraphs",
    "ragged": "one row of 128 tokens, others of 8 to 80",
    "sorted": "neighbours of such a text sorted by length",
    "full": "rows equally long",
}
SORTED = "sorted"  # in the name of a length mix whose batches hold rows of about one length


def ragged(records: Sequence[Record]) -> Chosen | None:
    """The newest record with rows of real lengths, a GPU's before a CPU's, and these rows."""
    return next((found for device in ("cuda", "cpu") if (found := newest(records, device, "inference"))), None)


def small_table(records: Sequence[Record]) -> str:
    """A line per workload, and what it was measured on, as Markdown."""
    chosen = ragged(records)
    if chosen is None:
        return f"Text of many lengths: {NOT_MEASURED}."
    record, rows = chosen
    head = ["real tokens per second", "padding", *SHOWN, "fastbert, beside the faster one"]
    lines = [[_name(row), f"{1 - row.case.fill:.0%}", *(_rate(row, name) for name in SHOWN), _ratio(row)] for row in rows]
    missing = [name for device, name in DEVICES.items() if newest(records, device, "inference") is None]
    parts = [table(head, lines), f"{conditions_line(record)}."]
    parts += [f"On a {name}: {NOT_MEASURED}." for name in missing]
    return "\n\n".join(parts)


def chart(records: Sequence[Record]) -> bytes | None:
    """The workloads that have padding as bars, as PNG; None where no record has one. `digest` tells its numbers apart."""
    chosen = ragged(records)
    rows = [row for row in chosen[1] if row.case.fill < 1] if chosen else []
    if chosen is None or not rows:
        return None
    figure, canvas = new_figure((8, 1.15 * len(rows) + 1.3))
    axes = figure.add_subplot()
    height = 0.26
    for index, row in enumerate(rows):
        for place, name in enumerate(SHOWN):
            y = index + (place - 1) * height
            rate = _tokens_per_s(row, name)
            axes.barh(y, rate or 0, height * 0.92, color=COLOURS[name], label=name if index == 0 else None)
            ratio = f"   {_ratio(row)}" if name == FASTBERT else ""
            axes.annotate(f" {_rate(row, name)}{ratio}", (rate or 0, y), va="center", fontsize=8)
    labels = [_name(row).replace(": ", "\n").replace("; ", "\n") + f"; {1 - row.case.fill:.0%} padding" for row in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    sorted_too = any(SORTED in row.case.lengths for row in rows)
    axes.set_title("real tokens per second, batches in the order of the text", fontsize=10, loc="left")
    figure.supxlabel(
        f"{chosen[0].conditions.get('device', 'unknown device')}, {rows[0].case.dtype}"
        + ("" if sorted_too else f"; batches sorted by length: {NOT_MEASURED} in this record"),
        fontsize=8,
    )
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    out = io.BytesIO()
    canvas.print_figure(out, format="png", dpi=110, metadata={"Software": None, "Description": digest(records)})
    return out.getvalue()


def digest(records: Sequence[Record]) -> str:
    """What the chart shows, as a hash that it carries."""
    return hashlib.sha256(small_table(records).encode()).hexdigest()


def _name(row: Row) -> str:
    text = WORKLOADS.get(row.case.lengths, row.case.lengths)
    return f"{row.case.lengths}, {row.case.batch_size} x {row.case.seqlen}: {text}; {row.case.model}"


def _tokens_per_s(row: Row, name: str) -> float | None:
    contender = row.contender(name)
    return row.tokens_per_s(contender) if contender is not None and contender.status == TIMED else None


def _rate(row: Row, name: str) -> str:
    contender = row.contender(name)
    if contender is None or contender.status == TIMED:
        return number(_tokens_per_s(row, name))
    return contender.status


def _ratio(row: Row) -> str:
    """fastbert over the fastest of the others."""
    mine = _tokens_per_s(row, FASTBERT)
    peers = [rate for name in SHOWN if name != FASTBERT and (rate := _tokens_per_s(row, name))]
    return f"{mine / max(peers):.2f}x" if mine and peers else NOT_MEASURED
