"""What is checked before a pre-training run begins: libraries, processes, the seed, and room on the disk."""

import importlib.util
import math
import os

import torch

from fastbert.training import checkpoints
from fastbert.utils.errors import InputError
from fastbert.utils.files import check_room, size_of
from fastbert.utils.installation import install_command
from fastbert.utils.printing import number_of

from .options import Options


def is_installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def check_machine(options: Options) -> None:
    """Raises InputError where a library is missing or the processes do not fit the options."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if options.fsdp and world < 2:
        raise InputError(f"expected several processes (torchrun) to shard over with FSDP, got {world}")
    if world == 1 and torch.cuda.device_count() > 1:
        raise InputError(
            f"expected torchrun, or CUDA_VISIBLE_DEVICES naming one GPU, got one process that sees {torch.cuda.device_count()}"
        )
    if options.seed < 0:
        raise InputError(f"expected a seed of at least 0, got {options.seed}")
    if not is_installed("accelerate"):
        raise InputError(f"expected accelerate for training, got none installed: {install_command('train')}")
    if options.fsdp and options.direction == "shallow":
        raise InputError("expected no FSDP beside direction shallow, got both")


def check_disk(options: Options, model: torch.nn.Module) -> None:
    """Raises InputError where the checkpoints that are kept, and the one that is being written, do not fit on the disk."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    count = min(options.keep, math.ceil(sum(options.steps) / options.save_every)) + 1
    already = sum(size_of(folder) for folder in checkpoints.all_of(options.out)[: options.keep])
    needed = count * 3 * weights - already  # weights and Adam's two moments
    check_room(
        options.out, needed, f"{number_of(count, 'checkpoint')} of {3 * weights:,} bytes, the one being written among them"
    )
