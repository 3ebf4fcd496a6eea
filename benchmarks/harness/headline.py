"""The tables for a README: on each device fastbert against every peer, and under which conditions."""

from collections.abc import Sequence

from .markdown import NOT_MEASURED, number, plain, table
from .record_tables import against
from .records import FASTBERT, TIMED, Record, Row

DEVICES = {"cpu": "CPU", "cuda": "GPU"}
HEADLINES = {"inference": "Inference on real lengths", "pretraining": "A step of pre-training"}
LINES = (FASTBERT, "fastbert, masked-only heads")  # contenders with a line of the table; peers have a column
Chosen = tuple[Record, list[Row]]


def headline(records: Sequence[Record]) -> str:
    """A table per suite of HEADLINES, as Markdown.

    A peer without any number has no column; the line below the table says which and why.
    """
    parts = []
    for suite, title in HEADLINES.items():
        chosen = {device: newest(records, device, suite) for device in DEVICES}
        rows = [row for found in chosen.values() if found for row in found[1]]
        names = list(dict.fromkeys(c.name for row in rows for c in row.contenders if not c.name.startswith(FASTBERT)))
        peers = [name for name in names if any((c := row.contender(name)) and c.status == TIMED for row in rows)]
        parts += [f"{title}: fastbert's real tokens per second over each peer's.", _table(chosen, peers)]
        missing = [f"{name} ({_why(rows, name)})" for name in names if name not in peers]
        parts += [f"Without a number: {'; '.join(missing)}."] if missing else []
        parts += [f"{DEVICES[device]}: {conditions_line(found[0])}." for device, found in chosen.items() if found]
    return "\n\n".join(parts)


def newest(records: Sequence[Record], device_type: str, suite: str) -> Chosen | None:
    """The newest record of a device type with headline rows of a suite, and these rows."""
    for record in reversed(records):
        rows = [row for row in record.rows if row.case.suite == suite]
        rows = [row for row in rows if suite != "inference" or row.case.lengths != "fixed"]
        if rows and record.conditions.get("device_type") == device_type:
            return record, rows
    return None


def _table(chosen: dict[str, Chosen | None], peers: Sequence[str]) -> str:
    head = ["device", "workload", "fill rate", "contender", "real tokens/s", *(f"against {peer}" for peer in peers)]
    lines = []
    for device, found in chosen.items():
        if found is None:
            lines.append([DEVICES[device], *[NOT_MEASURED] * (len(head) - 1)])
            continue
        for row in found[1]:
            names = [name for name in LINES if name == FASTBERT or row.contender(name) is not None]
            lines += [[DEVICES[device], *_cells(row, peers, name)] for name in names]
    return table(head, lines)


def _cells(row: Row, peers: Sequence[str], name: str) -> list[str]:
    """The line of fastbert's contender of this name."""
    contender = row.contender(name)
    if contender is None:
        rate = NOT_MEASURED
    else:
        rate = number(row.tokens_per_s(contender)) if contender.status == TIMED else contender.status
    cells = [row.case.title, f"{row.case.fill:.2f}", name, rate]
    for peer_name in peers:
        peer = row.contender(peer_name)
        ratio = None if peer is None else against(row, peer, name)
        missing = NOT_MEASURED if peer is None or peer.status == TIMED else peer.status
        cells.append(missing if ratio is None else f"{ratio:.2f}x")
    return cells


def _why(rows: Sequence[Row], name: str) -> str:
    """Why a contender has no number in any of these rows."""
    found = [contender for row in rows if (contender := row.contender(name)) is not None]
    return " or ".join(dict.fromkeys(f"{one.status}: {one.reason or 'no reason given'}" for one in found))


def conditions_line(record: Record) -> str:
    """The conditions in one sentence."""
    found = record.conditions
    versions = found.get("versions") or {}
    shown = ", ".join(f"{name} {versions[name]}" for name in ("torch", "triton", "transformers") if name in versions)
    commit = str(found.get("commit") or "unknown")[:12] + (" with uncommitted changes" if found.get("dirty") else "")
    threads = f"{plain(found.get('threads'))} threads, " if found.get("device_type") == "cpu" else ""
    return (
        f"{plain(found.get('device'))}, {threads}{shown or 'versions unknown'}, commit {commit}, "
        f"{plain(found.get('started'))}, `{plain(found.get('command'))}`"
    )
