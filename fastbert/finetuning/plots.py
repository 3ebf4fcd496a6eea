"""The pictures of a run: its curves and its confusion matrix."""

from pathlib import Path
from typing import Any

import numpy as np

from fastbert.utils.pictures import pyplot, save_png

MAX_LABELS_WITH_COUNTS = 15  # in more squares the counts would not be legible


def plot_curves(history: list[dict[str, Any]], file: Path, *, headline: str, baseline: float) -> None:
    """Writes a PNG of Trainer's log history: the training loss, and the headline metric at each evaluation."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for axes, key, style in ((left, "loss", "-"), (right, f"eval_{headline}", "o-")):
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            axes.plot(*zip(*points), "o-" if len(points) == 1 else style, markersize=3)
        axes.set(xlabel="step")
    left.set(ylabel="training loss")
    right.axhline(baseline, linestyle="--", linewidth=1, color="grey")
    right.annotate("without input", (0.99, baseline), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    right.set(ylabel=headline)
    save_png(figure, file)


def plot_confusion(names: list[str], counts: np.ndarray, file: Path) -> None:
    """Writes a PNG of a confusion matrix, each row as shares of its label. counts: (labels, labels), expected by predicted."""
    plt = pyplot()
    size = float(np.clip(2.5 + 0.45 * len(names), 4, 20))
    figure, axes = plt.subplots(figsize=(size, size), constrained_layout=True)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    font = 8 if len(names) <= 30 else 6
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=font)
    axes.set_yticks(range(len(names)), names, fontsize=font)
    axes.set(xlabel="predicted", ylabel="expected")
    if len(names) <= MAX_LABELS_WITH_COUNTS:
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count}", ha="center", va="center", fontsize=8, color=color)
    save_png(figure, file)
