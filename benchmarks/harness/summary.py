"""Rows as lines of text, for the terminal."""

from collections.abc import Iterable, Iterator

from .records import TIMED, Row


def lines_of(rows: Iterable[Row]) -> Iterator[str]:
    """A heading per case, then each contender: milliseconds, real tokens per second, ratio to the baseline, or the reason."""
    for row in rows:
        yield f"{row.case.suite}: {row.case.title}, fill {row.case.fill:.2f}"
        width = max(len(contender.name) for contender in row.contenders)
        for contender in row.contenders:
            if contender.status != TIMED:
                yield f"    {contender.name:<{width}}  {contender.status}: {contender.reason}"
                continue
            ratio = row.ratio(contender)
            yield (
                f"    {contender.name:<{width}}  {contender.median * 1e3:10.3f} ms ±{contender.spread:<4.0%}"
                f"{row.tokens_per_s(contender):14,.0f} tokens/s" + ("" if ratio is None else f"  {ratio:5.2f}x")
            )
