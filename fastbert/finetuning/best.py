"""The best epoch of a run, kept on the disk as training goes: a folder that transformers loads, replaced when one is better."""

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from fastbert.training import checkpoints
from fastbert.training.trainer import raise_of_disk
from fastbert.utils.checkpoints import quiet
from fastbert.utils.files import copy_whole

from .method import Method

FOLDER, CONFUSION = "best", "confusion.png"
WHICH = ("best", "last")


class BestEpoch:
    """Of a run whose report goes to `folder`. which: of WHICH; 'last' keeps the latest epoch, whatever its score.

    metrics, epoch: of what is kept, None before there is any.
    """

    def __init__(self, folder: Path, method: Method, which: str = "best") -> None:
        self.place, self.method, self.which = folder / FOLDER, method, which
        self.metrics: dict[str, float] | None = None
        self.epoch: float | None = None

    def read(self) -> None:
        """Takes up what an interrupted run kept. Raises checkpoints.Damaged where it is not whole."""
        if self.place.exists():
            facts = checkpoints.verify(self.place)
            self.metrics, self.epoch = dict(facts["metrics"]), float(facts["epoch"])

    def remove(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)

    def offer(self, model: Any, metrics: dict[str, float], outputs: Sequence[np.ndarray], epoch: float) -> None:
        """Keeps the model where its epoch is better than the one that is kept. outputs: of it on the evaluation data.

        Raises OSError where the disk takes not all; what was kept before is then still there.
        """
        if not self._is_better(metrics):
            return
        staging = self.place.with_name(f".{FOLDER}")
        shutil.rmtree(staging, ignore_errors=True)  # of a save that was killed
        try:
            staging.mkdir(parents=True)
            tokenizer: Any = self.method.checkpoint.tokenizer
            with quiet():
                self.method.save(model, self.method.task.decided(metrics), staging)
                tokenizer.save_pretrained(staging)
            self._plot(outputs, staging / CONFUSION)
            checkpoints.install(staging, self.place, {"metrics": metrics, "epoch": epoch})
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise_of_disk(error, f"the model of epoch {epoch:g} to {self.place}")
            raise
        self.metrics, self.epoch = dict(metrics), epoch

    def place_in(self, model_folder: Path, report_folder: Path) -> None:
        """Puts the files where they belong when the run is finished, each whole; `remove` is for later."""
        model_folder.mkdir(parents=True, exist_ok=True)
        for file in self.place.iterdir():
            if file.name != checkpoints.MANIFEST:
                copy_whole(file, (report_folder if file.name == CONFUSION else model_folder) / file.name)

    def _is_better(self, metrics: dict[str, float]) -> bool:
        if self.metrics is None or self.which == "last":
            return True
        headline = self.method.task.headline
        now, before = metrics[headline], self.metrics[headline]
        return bool(now > before or (np.isnan(before) and not np.isnan(now)))

    def _plot(self, outputs: Sequence[np.ndarray], file: Path) -> None:
        if importlib.util.find_spec("matplotlib") is None:
            return
        from .plots import plot_confusion

        if (confusion := self.method.task.confusion(outputs)) is not None:
            plot_confusion(*confusion, file)
