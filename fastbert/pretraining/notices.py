"""What a pre-training run tells its user: what it will do, and where the loss shows that it does not learn."""

from typing import Any

import numpy as np
import torch
from rich.console import Console
from transformers import TrainerCallback

from fastbert.data.batches import MicroBatches
from fastbert.utils.printing import number_of, print_line

from .objectives import Objective
from .options import Options
from .recipe import Recipe, describe


def introduce(options: Options, batches: MicroBatches, model: torch.nn.Module, objective: Objective, console: Console) -> None:
    """Prints the size of the model and of the training, and what differs from the usual."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    console.print(
        f"{number_of(parameters, 'parameter')}, {options.precision}, {number_of(batches.steps, 'step')} of "
        f"{number_of(options.batch_tokens, 'token')}"
    )
    console.print(objective.title)
    print_line(
        console,
        f"{options.out}: a checkpoint every {number_of(options.save_every, 'step')}; "
        f"stopped or killed, the same command with --resume "
        "continues from the last one",
    )
    for line in describe(options.recipe):
        console.print(f"unlike the preset modern, {line}")
    for phase in batches.phases:
        padded = len(phase.shards) * phase.shards.meta.seq_len
        console.print(
            f"{phase.shards.folder}: {number_of(phase.steps, 'step')}, "
            f"{phase.steps / phase.plan.steps_per_epoch:.1f} epochs of "
            f"{number_of(len(phase.shards), 'sample')}; fill rate "
            f"{np.sum(phase.shards.lengths) / padded:.2f}, padding never computed"
        )
        if options.direction == "both" and options.recipe.static_masking and phase.shards.meta.options.get("duplicates") == 1:
            console.print(
                f"[yellow]{phase.shards.folder} has each document once, and static masking masks it always in the same "
                "positions; the original recipe has each ten times, masked differently: fastbert prepare --duplicates 10[/]"
            )


class StuckAtFrequencies(TrainerCallback):
    """Warns where the loss stays at the entropy of single tokens: the model has learned their frequencies, and no more.

    entropy: in nats, or None where it is not known. steps: of the whole run.
    """

    NEAR, READINGS = 0.15, 20  # nats; readings in a row

    def __init__(self, entropy: float | None, recipe: Recipe, steps: int, console: Console) -> None:
        self.entropy, self.console, self.readings = entropy, console, 0
        self.warm_up = recipe.num_warmup_steps(steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        loss = None if not logs else logs.get("mlm_loss", logs.get("lm_loss"))
        if self.entropy is None or loss is None or state.global_step < self.warm_up:
            return
        self.readings = self.readings + 1 if abs(loss - self.entropy) < self.NEAR else 0
        if self.readings == self.READINGS and state.is_world_process_zero:
            self.console.print(
                f"[yellow]the loss of tokens has stayed at {self.entropy:.2f} nats, the entropy of single tokens, for "
                f"{self.READINGS} readings: the model knows frequencies and no context. More warm-up, another learning rate "
                "or more steps help.[/]"
            )
