"""The pictures of a run."""

import numpy as np
import pytest

from fastbert.finetuning.plots import plot_confusion, plot_curves


@pytest.mark.parametrize("evaluations", [0, 1, 3])
def test_curves_are_drawn_of_any_number_of_readings(evaluations, drawn_pictures, tmp_path):
    history = [{"step": step, "loss": 1.0 / (step + 1)} for step in range(10)]
    history += [{"step": step, "eval_accuracy": 0.5 + step / 10} for step in range(evaluations)]
    plot_curves(history, tmp_path / "curves.png", headline="accuracy", baseline=0.5)
    content = (tmp_path / "curves.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 10_000


@pytest.mark.parametrize("labels", [2, 20])
def test_a_confusion_is_drawn_of_few_labels_and_of_many(labels, drawn_pictures, tmp_path):
    counts = np.diag(np.arange(labels))  # label 0 does not occur: its row has no shares
    plot_confusion([f"label {i}" for i in range(labels)], counts, tmp_path / "confusion.png")
    content = (tmp_path / "confusion.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 5_000
