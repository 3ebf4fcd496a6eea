"""What is checked before a fine-tuning begins: libraries, processes, seeds, and room on the disk."""

import importlib.util
import os
from typing import Any

import torch

from fastbert.utils.errors import InputError
from fastbert.utils.files import check_room, size_of
from fastbert.utils.installation import install_command

from .method import Method
from .options import Options

NEEDED = {"accelerate": "accelerate", "sklearn": "scikit-learn", "scipy": "scipy", "seqeval": "seqeval"}


def check_machine(options: Options) -> None:
    """Raises InputError where a library is missing or the processes do not fit the options."""
    for library, name in NEEDED.items():
        if importlib.util.find_spec(library) is None:
            raise InputError(f"expected {name} for fine-tuning, got none installed: {install_command('train')}")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and options.frozen is not None:
        raise InputError(
            f"expected one process with --frozen, whose features are computed once and whose head is small, got {world}"
        )
    for batch_size in sorted({one.batch_size for one in options.settings}):
        if batch_size % world:
            raise InputError(
                f"expected a batch size (of a step, over all processes) that the {world} processes divide, got {batch_size}"
            )
    if world == 1 and torch.cuda.device_count() > 1:
        raise InputError(
            f"expected torchrun, or CUDA_VISIBLE_DEVICES naming one GPU, got one process that sees {torch.cuda.device_count()}"
        )
    if options.seeds < 1 or options.setting.seed < 0:
        raise InputError(f"expected at least one seed from 0 on, got {options.seeds} from {options.setting.seed}")


def check_disk(options: Options, method: Method, model: Any) -> None:
    """Raises InputError where the disk has no room for the most that a run keeps on it at once."""
    saved, trained, others = method.disk(model)
    checkpoint = 3 * trained  # weights and Adam's two moments
    # A checkpoint or a best epoch is written before the one that it replaces is removed; of several runs the best stays.
    needed = max(2 * saved + checkpoint, saved + 2 * checkpoint) + others + (saved if options.has_several_runs else 0)
    what = f"a best epoch of {saved:,} bytes and a checkpoint of {checkpoint:,}, each beside the one that it replaces"
    check_room(options.out, needed - size_of(options.out), what + (f", and features of {others:,}" if others else ""))
