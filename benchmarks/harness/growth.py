"""How time and memory grow with batch size, length and layers: exponents fitted to rows that vary one of them."""

import math
from collections.abc import Sequence

from .markdown import NO_NUMBER, NOT_MEASURED, table
from .records import TIMED, Row, families

AXES = ("batch_size", "seqlen", "num_layers")


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


def _axis_of(row: Row) -> str | None:
    return next((c.details["axis"] for c in row.contenders if c.details.get("axis") in AXES), None)


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
