"""`fastbert finetune` from options to a folder: everything is checked before anything is written."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from rich.console import Console

from fastbert.utils.checkpoints import Checkpoint, open_checkpoint
from fastbert.utils.errors import InputError
from fastbert.utils.existing_outputs import check_flags, finished_message
from fastbert.utils.files import write_whole
from fastbert.utils.locks import locked_together
from fastbert.utils.printing import line_printer
from fastbert.utils.processes import decide_on_rank0

from .checks import check_disk, check_machine
from .data import TaskData
from .frozen_method import FrozenMethod
from .method import Method
from .model import load_model
from .options import Options, identity_of
from .output import IDENTITY, check_folder, clear
from .several_runs import several_runs
from .single_run import single_run
from .task_types import load_task
from .trainer import training_arguments


def finetune(options: Options, console: Console, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Trains, and leaves in `out` the best model as transformers loads it, its report and pictures; returns the report.

    resume: continue what an interrupted call of the same options left, or return the report of a finished one; of several
    runs each leaves its report under runs/, and a finished one is not repeated. overwrite: start over, and remove what an
    earlier call left. Raises InputError, before anything is written, where the options, the files and the checkpoint do not
    fit, `out` holds something else or is written to by another run, or the disk has no room. `single_run` says what an
    interruption leaves.

    Started by torchrun, the processes share every batch and the evaluation: the steps and the loss are those of one process,
    only dropout differs. The first prints and writes; all return the report. Their process group stays for the next call.
    """
    check_flags(resume, overwrite)
    check_machine(options)
    arguments = training_arguments(options.setting, 1, options.out, options.precision)
    console.quiet = console.quiet or not arguments.should_save  # reading `arguments` also sets up the process group
    checkpoint = open_checkpoint(options.model)
    if not checkpoint.require_tokenizer().is_fast:
        raise InputError(f"expected a fast tokenizer in {options.model}, got a slow one")
    identity = identity_of(options)
    say = line_printer(console)
    with locked_together(options.out, say):
        report = decide_on_rank0(lambda: check_folder(options.out, identity, resume, overwrite))
        if report is not None:
            say(finished_message(options.out))
            return report
        task = load_task(options.task, options.data, checkpoint)
        for note in task.notes:
            say(note)
        with _method(options, task, checkpoint, console) as method:
            if arguments.should_save:
                if overwrite:
                    clear(options.out)
                write_whole(options.out / IDENTITY, json.dumps(identity, indent=1) + "\n")
            say(
                f"{options.out}: the best epoch and a checkpoint of the last are kept during training; stopped or killed, the "
                "same command with --resume continues from that checkpoint"
                + (", and no finished run is trained again" if options.has_several_runs else "")
            )
            if options.has_several_runs:
                return several_runs(options, method, identity, console)
            return single_run(
                method,
                options.setting,
                options.out,
                options.out,
                identity,
                console,
                precision=options.precision,
                keep_epoch=options.keep_epoch,
            )


@contextmanager
def _method(options: Options, task: TaskData, checkpoint: Checkpoint, console: Console) -> Iterator[Method]:
    """The method that the options ask for, once it is clear that it can be used."""
    model = None
    if options.frozen is None:
        model = load_model(checkpoint, task.head, task.settings)[0]
        method = Method(task, checkpoint)
    else:
        method = FrozenMethod(task, checkpoint, options.frozen, options.out, options.precision, console)
    decide_on_rank0(partial(check_disk, options, method, model))
    del model
    with method:
        yield method
