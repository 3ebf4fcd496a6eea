"""What a user chooses for a fine-tuning."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fastbert.model.variants.frozen_heads import Frozen

from .data import DataOptions

PAPER_BATCH_SIZES, PAPER_LEARNING_RATES, PAPER_EPOCHS = (16, 32), (5e-5, 4e-5, 3e-5, 2e-5), (2.0, 3.0, 4.0)


@dataclass(frozen=True)
class Setting:
    """How one run trains.

    batch_size: examples, or windows, of a step over all processes. warmup: share of the steps. epochs: may be a fraction.
    """

    batch_size: int = 32
    learning_rate: float = 5e-5
    epochs: float = 3.0
    seed: int = 0
    warmup: float = 0.1
    dropout: float = 0.1
    weight_decay: float = 0.01

    @property
    def name(self) -> str:
        """Of the run's folder among several."""
        return f"batch{self.batch_size}-lr{self.learning_rate:g}-epochs{self.epochs:g}-seed{self.seed}"


@dataclass(frozen=True)
class Options:
    """A whole fine-tuning.

    task: one of `task_types.TASKS`. model: a checkpoint. grid: settings to try with every seed from `setting.seed` on; empty
    for `setting` alone. precision: float32 or bf16 (autocast). frozen: train a head on features of the encoder alone.
    keep_epoch: of `best_epoch.WHICH`, whose weights and scores are those of a run.
    """

    task: str
    model: str
    data: DataOptions
    out: Path
    setting: Setting
    grid: tuple[Setting, ...] = ()
    seeds: int = 1
    precision: str = "float32"
    frozen: Frozen | None = None
    keep_epoch: str = "best"

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings to try."""
        return self.grid or (self.setting,)

    @property
    def has_several_runs(self) -> bool:
        return bool(self.grid) or self.seeds > 1


def paper_grid(setting: Setting) -> tuple[Setting, ...]:
    """The settings of Devlin et al. 2019 (section 4 and appendix A.3); the rest as in `setting`."""
    return tuple(
        replace(setting, batch_size=batch_size, learning_rate=rate, epochs=epochs)
        for batch_size in PAPER_BATCH_SIZES
        for rate in PAPER_LEARNING_RATES
        for epochs in PAPER_EPOCHS
    )


def identity_of(options: Options) -> dict[str, Any]:
    """The options and the content of the files, as JSON values: a run is resumed only where they are the same."""
    data = asdict(options.data)
    for name in ("train", "evaluation"):
        data[name] = hashlib.sha256(getattr(options.data, name).read_bytes()).hexdigest()
    values = {name: value for name, value in asdict(options).items() if name != "out"} | {"data": data}
    # Options younger than the first runs are left out at their old meaning, so that those runs can be resumed.
    if options.data.format is None:
        del data["format"]
    if options.frozen is None:
        del values["frozen"]
    if options.keep_epoch == "last":
        del values["keep_epoch"]
    return json.loads(json.dumps(values, default=str))
