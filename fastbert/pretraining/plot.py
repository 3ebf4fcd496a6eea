"""The loss curves of a run as a picture, with the levels that tell whether it learns."""

import math
from pathlib import Path
from typing import Any

from fastbert.files import write_whole


def plot_losses(history: list[dict[str, Any]], file: Path, *, vocab_size: int, unigram_entropy: float | None) -> None:
    """Writes a PNG of Trainer's log history. unigram_entropy: of the training text in nats, or None where nobody knows it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    for axes, key, title in ((left, "mlm_loss", "masked language model"), (right, "next_sentence_loss", "next sentence")):
        for name, label, style in ((key, "training", "-"), (f"eval_{key}", "held out", "o-")):
            points = [(entry["step"], entry[name]) for entry in history if name in entry]
            if points:
                axes.plot(*zip(*points), style, label=label, markersize=3)
        axes.set(title=title, xlabel="step", ylabel="loss in nats")
    levels = [(left, math.log(vocab_size), "ln V: knows nothing"), (right, math.log(2), "chance")]
    if unigram_entropy is not None:
        levels.append((left, unigram_entropy, "unigram entropy: knows frequencies only"))
    for axes, level, label in levels:
        axes.axhline(level, linestyle="--", linewidth=1, color="grey")
        axes.annotate(label, (0.99, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    for axes in (left, right):
        if axes.lines[:-1]:
            axes.legend()
    write_whole(file, lambda handle: figure.savefig(handle, format="png", dpi=110))
    plt.close(figure)
