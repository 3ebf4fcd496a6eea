"""PNG plots of one record: throughput, latency, roofline and memory. Each is drawn only from rows that are there."""

import io
from collections.abc import Callable

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from .records import FASTBERT, TIMED, Contender, Record, Row, families

TAB20 = tuple(to_hex(colour) for colour in colormaps["tab20"].colors)
COLOURS = TAB20[::2] + TAB20[1::2]  # the ten dark ones first
Value = Callable[[Row, Contender], float | None]


def render(record: Record) -> dict[str, bytes]:
    """PNG files by name: 'throughput', 'latency', 'roofline', 'memory'. A plot without two points to join is left out."""
    inference = [row for row in record.rows if row.case.suite == "inference"]
    models = [row for row in record.rows if row.case.suite in ("inference", "pretraining")]
    remembered = [row for row in record.rows if row.case.suite in ("inference", "pretraining", "scaling")]
    plots = {
        "throughput": _curves(models, "seqlen", "batch_size", "real tokens per second", Row.tokens_per_s),
        "latency": _curves(
            inference, "batch_size", "seqlen", "latency in ms: solid p50, dotted p99", _percentile(50), _percentile(99)
        ),
        "roofline": _roofline(record),
        "memory": _curves(remembered, "seqlen", "batch_size", "peak memory in MiB", _peak_mib),
    }
    return {name: figure for name, figure in plots.items() if figure is not None}


def _percentile(percent: int) -> Value:
    return lambda row, contender: contender.percentile(percent) * 1e3


def _peak_mib(row: Row, contender: Contender) -> float | None:
    return None if contender.peak_bytes is None else contender.peak_bytes / 2**20


def _curves(rows: list[Row], axis: str, other: str, title: str, value: Value, dotted: Value | None = None) -> bytes | None:
    """One panel per workload over the case field `axis`; a line per value of `other` where an axis value has several."""
    panels = []
    for family in families(rows, axis, other):
        values = [getattr(row.case, axis) for row in family]
        repeated = len(set(values)) < len(values)
        lines = _lines(family, axis, other if repeated else None, value)
        if any(len(points) > 1 for points in lines.values()):
            panels.append((family, lines, _lines(family, axis, other if repeated else None, dotted) if dotted else {}))
    if not panels:
        return None
    figure, canvas = _figure(len(panels))
    colours = _colours([row for family, _, _ in panels for row in family])
    for index, (family, lines, more) in enumerate(panels):
        axes = _panel(figure, len(panels), index)
        for (name, setting), points in lines.items():
            width = 2.4 if name == FASTBERT else 1.2
            axes.plot(*zip(*points), marker="o", markersize=3, linewidth=width, color=colours[name], label=name)
            if setting is not None and name == FASTBERT:
                axes.annotate(f"{other} {setting}", points[-1], fontsize=6, xytext=(2, 2), textcoords="offset points")
        for (name, _), points in more.items():
            axes.plot(*zip(*points), linestyle=":", linewidth=1, color=colours[name])
        case = family[0].case
        layers = f"{case.num_layers} layers" if case.suite == "scaling" else ""
        parts = (case.suite, case.model, layers, case.operation, case.direction, case.lengths, case.dtype)
        axes.set_title(", ".join(part for part in parts if part), fontsize=8)
        axes.set_xscale("log", base=2)
        axes.margins(x=0.12)  # room for the labels of the last points
        ticks = sorted({x for points in lines.values() for x, _ in points})
        axes.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=7)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(axis, fontsize=8)
    return _finish(figure, canvas, title)


def _lines(
    rows: list[Row], axis: str, other: str | None, value: Value
) -> dict[tuple[str, int | None], list[tuple[int, float]]]:
    """Points by contender, and by the case field `other` where there is one."""
    found: dict[tuple[str, int | None], list[tuple[int, float]]] = {}
    for row in rows:
        for contender in row.contenders:
            y = value(row, contender) if contender.status == TIMED else None
            if y is not None and y > 0:
                key = contender.name, getattr(row.case, other) if other else None
                found.setdefault(key, []).append((getattr(row.case, axis), y))
    return {key: sorted(points) for key, points in found.items()}


def _roofline(record: Record) -> bytes | None:
    """Achieved FLOP/s of the kernels over their arithmetic intensity, below the two ceilings measured in that run."""
    rows = [row for row in record.rows if row.case.suite == "kernels" and row.case.flops > 0 and row.case.bytes_moved > 0]
    rows = [row for row in rows if any(contender.status == TIMED for contender in row.contenders)]
    if not rows:
        return None
    dtypes = list(dict.fromkeys(row.case.dtype for row in rows))
    figure, canvas = _figure(len(dtypes))
    colours = _colours(rows)
    copy = record.ceilings.get("copy")
    for index, dtype in enumerate(dtypes):
        axes = _panel(figure, len(dtypes), index)
        matmul = record.matmul_ceiling(dtype)
        shown = [row for row in rows if row.case.dtype == dtype]
        intensities = [row.case.flops / row.case.bytes_moved for row in shown]
        corner = [matmul / copy] if matmul and copy else []
        low, high = min(intensities + corner) / 2, max(intensities + corner) * 2
        for row, intensity in zip(shown, intensities):
            for contender in row.contenders:
                if contender.status != TIMED:
                    continue
                is_fastbert = contender.name == FASTBERT
                point = intensity, row.flops_per_s(contender)
                axes.plot(
                    *point,
                    marker="o" if is_fastbert else "x",
                    markersize=5,
                    linestyle="",
                    color=colours[contender.name],
                    label=contender.name,
                )
                if is_fastbert:
                    name = " ".join(part for part in (row.case.operation, row.case.direction) if part)
                    axes.annotate(name, point, fontsize=5, xytext=(3, -3), textcoords="offset points")
        if copy:
            top = min(high, corner[0]) if corner else high
            axes.plot([low, top], [low * copy, top * copy], color="black", linewidth=1, label="ceiling: copy")
        if matmul:
            start = corner[0] if corner else low
            axes.plot([start, high], [matmul, matmul], color="black", linewidth=1, linestyle="--", label="ceiling: matmul")
        missing = [name for name, ceiling in (("matmul", matmul), ("copy", copy)) if not ceiling]
        axes.set_title(dtype + (f" ({' and '.join(missing)} ceiling not measured)" if missing else ""), fontsize=8)
        axes.set_xscale("log")
        axes.set_xlabel("FLOP per byte", fontsize=8)
    return _finish(figure, canvas, "kernels: achieved FLOP/s over arithmetic intensity")


def _colours(rows: list[Row]) -> dict[str, str]:
    names = list(dict.fromkeys(contender.name for row in rows for contender in row.contenders))
    names.sort(key=lambda name: name != FASTBERT)
    return {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}


def _figure(panels: int) -> tuple[Figure, FigureCanvasAgg]:
    columns = min(panels, 3)
    return new_figure((5 * columns, 3.2 * -(-panels // columns) + 1))


def new_figure(inches: tuple[float, float]) -> tuple[Figure, FigureCanvasAgg]:
    """An empty figure, outside pyplot's state, with what draws it."""
    figure = Figure(figsize=inches, layout="constrained")
    return figure, FigureCanvasAgg(figure)


def _panel(figure: Figure, panels: int, index: int) -> Axes:
    columns = min(panels, 3)
    axes = figure.add_subplot(-(-panels // columns), columns, index + 1)
    axes.tick_params(labelsize=7)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(True, linewidth=0.3)
    return axes


def _finish(figure: Figure, canvas: FigureCanvasAgg, title: str) -> bytes:
    handles = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    figure.suptitle(title, fontsize=10)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=7)
    out = io.BytesIO()
    canvas.print_figure(out, format="png", dpi=110, metadata={"Software": None})  # no version: same bytes from the same rows
    return out.getvalue()
