"""One pre-training run from options to checkpoints: everything is checked before anything is written."""

import json
import math
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from fastbert.data.batches import MicroBatches, Phase, Plan
from fastbert.training import checkpoints
from fastbert.training.log_lines import LogLines
from fastbert.utils.errors import InputError
from fastbert.utils.existing_outputs import check_flags, finished_message
from fastbert.utils.files import write_whole
from fastbert.utils.flops import matmul_rate
from fastbert.utils.locks import locked_together
from fastbert.utils.printing import line_printer
from fastbert.utils.processes import decide_on_rank0, ending_together

from . import black_box
from .checks import check_disk, check_machine, is_installed
from .configuration import named_vocab_size
from .inputs import Inputs, open_inputs
from .notices import StuckAtFrequencies, introduce
from .options import Options, identity_of
from .output import OPTIONS, PICTURE, clear, resume_point
from .plot import plot_losses
from .recipe import create_optimizer, create_schedule
from .trainer import NonFinite, PreTrainer

NON_FINITE_STATUS = 3


def run(options: Options, console: Console, *, resume: bool, overwrite: bool = False) -> int:
    """Trains to the end, or until a signal; returns the exit status: 0 at the end, 128 + the signal, 3 for a bad step.

    resume: continue from the last whole checkpoint in `out`, or say that the run is finished. overwrite: start over, and
    remove what an earlier run left there. Raises InputError or DataError before anything is written where the options, the
    data and what `out` holds do not fit, another run writes there, or the disk has no room.
    """
    check_flags(resume, overwrite)
    with ending_together(), ExitStack() as stack:
        check_machine(options)
        for library, what in (("matplotlib", "no loss.png will be drawn"), ("tensorboard", "no curves for TensorBoard")):
            if not is_installed(library):
                console.print(f"[yellow]{library} is not installed: {what}[/]")
        inputs = open_inputs(options)
        identity = identity_of(options, inputs.config)  # now: a model writes into its configuration
        args = _arguments(options)
        console.quiet = console.quiet or not args.should_save
        say = line_printer(console)
        named = named_vocab_size(options.config)
        if named not in (None, inputs.config.vocab_size):
            say(f"vocab_size {inputs.config.vocab_size}, that of the tokenizer, not {named} of {options.config}")
        stack.enter_context(locked_together(options.out, say))
        checkpoint = decide_on_rank0(lambda: resume_point(options, identity, resume, overwrite, console))
        if checkpoint is not None and checkpoint.name == options.last_checkpoint:
            say(finished_message(options.out))
            return 0
        if checkpoint is not None and not checkpoint.is_dir():
            raise InputError(f"expected {options.out} on storage that every machine sees, got no {checkpoint.name} on this one")
        batches = _batches(options, inputs, args, checkpoint)
        trainer = _trainer(options, inputs, args, batches, console)
        if args.should_save:
            if overwrite:
                clear(options.out)
            write_whole(options.out / OPTIONS, json.dumps(identity | {"processes": args.world_size}, indent=1) + "\n")
            introduce(options, batches, trainer.model, inputs.objective, console)
        return _train(options, inputs, trainer, checkpoint, console)


def _arguments(options: Options) -> transformers.TrainingArguments:
    on_cpu = not torch.cuda.is_available()
    args = transformers.TrainingArguments(
        output_dir=str(options.out),
        max_steps=sum(options.steps),
        max_grad_norm=options.recipe.max_grad_norm,
        bf16=options.precision == "bf16",
        seed=options.seed,
        logging_steps=options.log_every,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=options.save_every,
        save_total_limit=options.keep,
        eval_strategy="no" if options.held_out is None else "steps",
        eval_steps=options.evaluate_every,
        dataloader_num_workers=options.workers,
        ignore_data_skip=True,  # the stream of steps begins where the checkpoint ends
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and "WORLD_SIZE" in os.environ else None,
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        disable_tqdm=True,  # training.log_lines prints
        report_to=["tensorboard"] if is_installed("tensorboard") else [],
    )
    args.gradient_accumulation_steps = math.ceil(options.batch_tokens / (options.micro_batch_tokens * args.world_size))
    return args


def _batches(options: Options, inputs: Inputs, args: transformers.TrainingArguments, checkpoint: Path | None) -> MicroBatches:
    """This process's batches, from the step of the checkpoint on. Raises InputError where the data has none of that size."""
    first_step = 0 if checkpoint is None else int(checkpoints.verify(checkpoint)["step"])
    try:
        plans = [Plan(one.lengths, options.batch_tokens, options.seed) for one in inputs.shards]
        phases = [Phase(one, inputs.masker, plan, steps) for one, plan, steps in zip(inputs.shards, plans, options.steps)]
        return MicroBatches(
            phases,
            process=(args.process_index, args.world_size),
            accumulation=args.gradient_accumulation_steps,
            first_step=first_step,
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def _trainer(
    options: Options, inputs: Inputs, args: transformers.TrainingArguments, batches: MicroBatches, console: Console
) -> PreTrainer:
    """The trainer of a new model."""
    transformers.set_seed(options.seed)
    model = inputs.objective.model(inputs.config)
    decide_on_rank0(lambda: check_disk(options, model))

    def create(model: torch.nn.Module) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = create_optimizer(options.recipe, model)
        return optimizer, create_schedule(options.recipe, optimizer, batches.steps)

    trainer = PreTrainer(
        model,
        args,
        batches,
        create,
        held_out=None if inputs.held_out is None else (inputs.held_out, inputs.masker),
        held_out_samples=options.held_out_samples,
        facts={"tokenizer": inputs.shards[0].meta.fingerprint},
        tokenizer=inputs.tokenizer,
        sharded=options.fsdp,
        # The FLOPs of a shallow model, of two encoders, are not counted.
        device_rate=None if options.direction == "shallow" else _device_rate(options, args.device, console),
        objective=inputs.objective,
        lines=LogLines(console),
    )
    trainer.add_callback(StuckAtFrequencies(inputs.entropy, options.recipe, batches.steps, console))
    return trainer


def _device_rate(options: Options, device: torch.device, console: Console) -> float:
    """FLOP/s of one device, of which utilisation is a share."""
    if options.peak_tflops is not None:
        return options.peak_tflops * 1e12
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    rate = matmul_rate(device, dtype)
    console.print(f"mfu counts against {rate / 1e12:.3g} TFLOP/s, a large {options.precision} matrix product measured now")
    return rate


def _train(options: Options, inputs: Inputs, trainer: PreTrainer, checkpoint: Path | None, console: Console) -> int:
    """Trains from the checkpoint, or from the beginning; returns the exit status."""
    args, steps = trainer.args, trainer.batches.steps
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if trainer.last_saved != trainer.state.global_step:
            trainer._save_checkpoint(trainer.model, None)
    except NonFinite as error:
        name = f"stopped-at-step-{trainer.state.global_step + 1}-process-{args.process_index}"
        file = black_box.write(options.out / name, trainer, str(error))
        console.print(f"[red]stopped: {error}[/]\nwhat happened, step by step: fastbert replay {file}")
        if args.world_size > 1:
            console.print("every process left one: where this replay is finite, the number came from another's samples")
        return NON_FINITE_STATUS
    except OSError as error:
        good = [path.name for path in checkpoints.all_of(options.out)][:1]
        kept = f"{good[0]} is there, and --resume continues from it" if good else "there is no checkpoint yet"
        raise OSError(f"{error}; in {options.out} {kept}") from error
    if trainer.stop_signal is not None and trainer.state.global_step < steps:
        console.print(f"stopped at step {trainer.state.global_step} of {steps}; --resume continues from there")
        return 128 + trainer.stop_signal
    if args.should_save:
        if is_installed("matplotlib"):
            picture, vocab_size = options.out / PICTURE, inputs.config.vocab_size
            plot_losses(trainer.state.log_history, picture, vocab_size=vocab_size, unigram_entropy=inputs.entropy)
        what = "with the folders left and right" if options.direction == "shallow" else "a folder"
        console.print(f"finished: {options.out / f'checkpoint-{steps}'}, {what} that transformers loads")
    return 0
