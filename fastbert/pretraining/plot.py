"""The loss curves of a run as a picture, with the levels that show whether it learns."""

import math
from pathlib import Path
from typing import Any

from fastbert.utils.pictures import pyplot, save_png


def plot_losses(history: list[dict[str, Any]], file: Path, *, vocab_size: int, unigram_entropy: float | None) -> None:
    """Writes a PNG of Trainer's log history, unless it has no loss.

    unigram_entropy: of single tokens in the training text, in nats; None where it is not known.
    """
    titles = {"mlm_loss": "masked language model", "lm_loss": "language model", "next_sentence_loss": "next sentence"}
    keys = [key for key in titles if any(key in entry or f"eval_{key}" in entry for entry in history)]
    if not keys:
        return
    figure, panels = pyplot().subplots(1, len(keys), figsize=(5.5 * len(keys), 4), constrained_layout=True, squeeze=False)
    for axes, key in zip(panels[0], keys):
        for name, label, style in ((key, "training", "-"), (f"eval_{key}", "held out", "o-")):
            points = [(entry["step"], entry[name]) for entry in history if name in entry]
            if points:
                axes.plot(*zip(*points), "o-" if len(points) == 1 else style, label=label, markersize=3)
        axes.set(title=titles[key], xlabel="step", ylabel="loss in nats")
        if key == "next_sentence_loss":
            levels = {"chance": math.log(2)}
        else:
            levels = {"ln V: all tokens equally likely": math.log(vocab_size)}
            if unigram_entropy is not None:
                levels["unigram entropy: frequencies only"] = unigram_entropy
        for label, level in levels.items():
            axes.axhline(level, linestyle="--", linewidth=1, color="grey")
            axes.annotate(label, (0.99, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    for axes in panels[0]:
        if axes.lines[:-1]:
            axes.legend()
    save_png(figure, file)
