"""What a user chooses for a pre-training run, and how a run is recognised when it is resumed."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import transformers

from fastbert.data.shards import META

from .recipe import Recipe

MAY_CHANGE = (  # when a run is resumed
    "save_every",
    "evaluate_every",
    "log_every",
    "keep",
    "workers",
    "micro_batch_tokens",
    "held_out_samples",
    "peak_tflops",
)


@dataclass(frozen=True)
class Options:
    """A whole pre-training run.

    data, steps: prepared folders and how many steps each is trained on, in order. config: a name of SIZES or the path of a
    BertConfig in JSON. batch_tokens: real tokens of one step, over all processes. micro_batch_tokens: of one forward of one
    process. held_out: a prepared folder to evaluate on. precision: 'bf16' (autocast) or 'float32'. fsdp: weights, gradients and
    optimizer state are sharded over the processes (FSDP2) instead of copied (DDP). peak_tflops: of one device, for utilisation;
    None: measured at the start. direction, next_sentence: see `objectives.Objective`.
    """

    data: tuple[Path, ...]
    steps: tuple[int, ...]
    out: Path
    config: str
    recipe: Recipe
    batch_tokens: int
    micro_batch_tokens: int
    precision: str
    seed: int = 0
    held_out: Path | None = None
    held_out_samples: int | None = 2000
    whole_words: bool = False
    max_predictions: int | None = None
    save_every: int = 1000
    evaluate_every: int = 1000
    log_every: int = 50
    keep: int = 3
    workers: int = 0
    fsdp: bool = False
    peak_tflops: float | None = None
    direction: str = "both"
    next_sentence: bool = True

    @property
    def last_checkpoint(self) -> str:
        """The name of the checkpoint with which the run is finished."""
        return f"checkpoint-{sum(self.steps)}"


def identity_of(options: Options, config: transformers.BertConfig) -> dict[str, Any]:
    """The options, the content of the data and the model, as JSON values: a run is resumed only where they are the same.

    All but MAY_CHANGE.
    """
    sums = [hashlib.sha256((folder / META).read_bytes()).hexdigest() for folder in options.data]
    values = {**asdict(options), "out": None, "data_sums": sums, "model": config.to_diff_dict()}
    return json.loads(json.dumps(values, default=str))
