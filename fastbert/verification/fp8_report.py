"""The report of `fastbert verify --dtype fp8`: a table, which products are in fp8, one verdict."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from fastbert.utils.printing import number_of

from .fp8 import QuantizationReport


def show(report: QuantizationReport, about: dict[str, Any], console: Console) -> None:
    """Prints the report. about: of the run, from the names of the report's JSON to values."""
    console.print(
        f"[bold]{about['checkpoint']}[/]\n{about['class']}, {number_of(about['texts'], 'text')}, calibrated with "
        f"{about['calibration texts']} others; {about['dtype']} where it is not fp8, on {about['device']}\n\n"
        "Each row: the model in fp8 beside itself before. 1 means no difference.\n",
        highlight=False,
    )
    table = Table()
    for name in ("", "compared", "mean", "at least", "worst", "at least", ""):
        table.add_column(name, justify="right" if name else "left", no_wrap=bool(name), overflow="fold")
    for finding in report.findings:
        numbers = (_value(finding.mean), _limit(finding.least_mean), _value(finding.worst), _limit(finding.least_worst))
        limited = finding.least_mean is not None
        mark = ("[green]✓[/]" if finding.passed else "[red]✗[/]") if limited else ""
        table.add_row(finding.what, f"{finding.count:,}", *numbers, mark)
    console.print(table)
    console.print(
        f"in fp8: {report.quantized} of {number_of(report.products, 'product')}, {report.share:.0%} of their arithmetic",
        highlight=False,
    )
    for name, why in report.kept.items():
        console.print(f"  not {name}: {why}", highlight=False, markup=False)
    if report.passed:
        console.print("[bold green]WITHIN THE LIMITS[/] on this text")
    else:
        console.print("[bold red]OUTSIDE THE LIMITS[/] on this text")


def as_dict(report: QuantizationReport, about: dict[str, Any]) -> dict[str, Any]:
    """The report as it is written as JSON."""
    return about | {
        "passed": report.passed,
        "findings": [asdict(finding) | {"passed": finding.passed} for finding in report.findings],
        "products in fp8": report.quantized,
        "products": report.products,
        "share of the arithmetic": report.share,
        "kept": report.kept,
    }


def _value(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"


def _limit(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
