"""The records as pages to read: `python -m benchmarks.report [FOLDER] [--checkout .]`.

Writes REPORT.md and the plots into the folder of records: every row, every contender, with the reason where there is no
number. With `--checkout` the numbers of its README.md (one small table and a chart) and of its docs/numbers.md (the headline
tables) are replaced too, each between the markers of its file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from fastbert.utils.files import write_whole

from .harness import plots
from .harness.growth import slope_table
from .harness.headline import headline
from .harness.markdown import plain
from .harness.ragged import chart, small_table
from .harness.record_tables import ceilings_table, conditions_table, suite_table
from .harness.records import Record, load_all, suites

README, NUMBERS, CHART = Path("README.md"), Path("docs/numbers.md"), Path("docs/images/ragged.png")  # in a checkout
BEGIN, END = "<!-- numbers: begin -->", "<!-- numbers: end -->"
NOTE = """\
Medians. spread: half the interquartile range over the median. Tokens are real tokens, padding is never counted. fill: real
tokens over positions of the padded batch. of ceiling: against the rates measured on the device in the same run, for a model its
FLOP utilisation on real tokens. fastbert against this: fastbert's real tokens per second over this contender's. "-": no number
belongs here, or the contender gave none and its row says why. Long details are cut here and whole in the raw JSON.\
"""


def build(folder: Path, checkout: Path | None = None) -> dict[Path, str | bytes]:
    """Every file to write, with its content. checkout: whose pages to write as well.

    Raises ValueError where the folder holds no record or a page lacks its markers, OSError where there is no such page.
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
    if checkout is not None:
        files |= pages(records, checkout)
    return files


def section(record: Record, folder: Path, images: dict[str, str]) -> str:
    """One record: conditions, ceilings, a table per suite, plots."""
    name = record.path.relative_to(folder).as_posix()
    parts = [f"## {plain(record.conditions.get('device'))}: {name}", conditions_table(record), ceilings_table(record)]
    for suite, rows in suites(record.rows).items():
        parts += [f"### {suite}", suite_table(record, rows)]
        if suite == "scaling":
            parts.append(slope_table(rows))
    if not record.rows:
        parts.append("This record holds no row.")
    return "\n\n".join([*parts, *(f"![{kind}, {name}]({file})" for kind, file in images.items())])


def pages(records: Sequence[Record], checkout: Path) -> dict[Path, str | bytes]:
    """README.md and docs/numbers.md of a checkout with the numbers of these records between their markers, and the chart."""
    picture = chart(records)
    files: dict[Path, str | bytes] = {} if picture is None else {checkout / CHART: picture}
    blocks = {README: small_table(records), NUMBERS: headline(records)}
    for page, block in blocks.items():
        path = checkout / page
        shown = "" if picture is None else f"![Real tokens per second]({CHART.relative_to(page.parent).as_posix()})\n\n"
        files[path] = between_markers(path.read_text(encoding="utf-8"), shown + block, page.as_posix())
    return files


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


def main(
    folder: Annotated[Path, typer.Argument(help="Folder with the records.")] = Path("benchmarks/results"),
    checkout: Annotated[Path | None, typer.Option(help="Replace the numbers of README.md and docs/ in it as well.")] = None,
) -> None:
    """Write REPORT.md and its plots from every record below the folder."""
    try:
        files = build(folder, checkout)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
        typer.echo(str(path))


if __name__ == "__main__":
    typer.run(main)
