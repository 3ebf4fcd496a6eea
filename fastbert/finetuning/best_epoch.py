"""The best epoch of a run, kept on the disk during training: a folder that transformers loads, replaced by a better one."""

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from fastbert.training import checkpoints
from fastbert.training.trainer import raise_disk_error
from fastbert.utils.checkpoints import quiet
from fastbert.utils.files import copy_whole

from .method import Method
from .output import BEST, CONFUSION

WHICH = ("best", "last")


class BestEpoch:
    """The best epoch of the run whose report goes to `folder`.

    which: of WHICH; 'last' keeps the latest epoch, whatever its score. metrics, epoch: of what is kept, None before there is
    any.
    """

    def __init__(self, folder: Path, method: Method, which: str = "best") -> None:
        self.path, self.method, self.which = folder / BEST, method, which
        self.metrics: dict[str, float] | None = None
        self.epoch: float | None = None

    def read(self) -> None:
        """Reads what an interrupted run kept. Raises checkpoints.Damaged where it is damaged."""
        if self.path.exists():
            facts = checkpoints.verify(self.path)
            self.metrics, self.epoch = dict(facts["metrics"]), float(facts["epoch"])

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def offer(self, model: Any, metrics: dict[str, float], outputs: Sequence[np.ndarray], epoch: float) -> None:
        """Keeps the model where its epoch is better than the one that is kept.

        outputs: of the model on the evaluation data. Raises OSError where the disk is full; what was kept before is still
        there then.
        """
        if not self._is_better(metrics):
            return
        staging = self.path.with_name(f".{BEST}")
        shutil.rmtree(staging, ignore_errors=True)  # of a save that was killed
        try:
            staging.mkdir(parents=True)
            tokenizer: Any = self.method.checkpoint.tokenizer
            with quiet():
                self.method.save(model, self.method.task.decided(metrics), staging)
                tokenizer.save_pretrained(staging)
            self._plot(outputs, staging / CONFUSION)
            checkpoints.install(staging, self.path, {"metrics": metrics, "epoch": epoch})
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(staging, ignore_errors=True)
            raise_disk_error(error, f"the model of epoch {epoch:g} to {self.path}")
            raise
        self.metrics, self.epoch = dict(metrics), epoch

    def copy_to(self, model_folder: Path, report_folder: Path) -> None:
        """Copies the files of the finished run, each whole, to where a user finds them. `remove` comes after the report."""
        model_folder.mkdir(parents=True, exist_ok=True)
        for file in self.path.iterdir():
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
