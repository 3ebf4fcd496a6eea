"""Pictures without a screen."""

from pathlib import Path
from typing import Any

from .files import write_whole


def pyplot() -> Any:
    """matplotlib.pyplot, drawing to files only."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_png(figure: Any, file: Path) -> None:
    """Writes a figure of `pyplot`, whole or not at all, and closes it."""
    write_whole(file, lambda handle: figure.savefig(handle, format="png", dpi=110))
    pyplot().close(figure)
