"""A task of a study, as the command line names it."""

from dataclasses import dataclass
from pathlib import Path

from fastbert.finetuning.task_types import TASKS
from fastbert.utils.errors import InputError


@dataclass(frozen=True)
class Task:
    """Files to fine-tune and to evaluate on. kind: as of `fastbert finetune`."""

    kind: str
    train: Path
    evaluation: Path

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.evaluation.stem}"

    @property
    def scale(self) -> float:
        """The factor that turns its score into percent."""
        return 1.0 if self.kind == "qa" else 100.0


def parse_task(text: str) -> Task:
    """A task from KIND=TRAIN,EVAL. Raises InputError."""
    kind, _, files = text.partition("=")
    train, _, evaluation = files.partition(",")
    if kind not in TASKS or not train or not evaluation:
        raise InputError(f"expected a task as KIND=TRAIN,EVAL with a kind among {', '.join(TASKS)}, got {text!r}")
    for file in (train, evaluation):
        if not Path(file).is_file():
            raise InputError(f"expected a file for the task {kind}, got {file}")
    return Task(kind, Path(train), Path(evaluation))
