"""One pre-training run from options to checkpoints: everything is checked before anything is written."""

import hashlib
import importlib.util
import json
import math
import os
import shutil
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from transformers import TrainerCallback

from fastbert.data.batches import MicroBatches, Phase, Plan
from fastbert.data.shards import META, TOKENIZER, Shards, fingerprint
from fastbert.training import checkpoints
from fastbert.utils.errors import DataError, InputError
from fastbert.utils.existing_outputs import (
    check_flags,
    exists_error,
    finished_message,
    foreign_folder_error,
    other_options_error,
    visible_names,
)
from fastbert.utils.files import check_room, size_of, write_whole
from fastbert.utils.flops import matmul_rate
from fastbert.utils.locks import locked_together
from fastbert.utils.processes import decide_on_rank0, ending_together
from fastbert.utils.sizes import SIZES

from . import black_box
from .configuration import make_config, read_config
from .objectives import Objective
from .plot import plot_losses
from .recipe import Recipe, create_optimizer, create_schedule, describe
from .trainer import NonFinite, PreTrainer

OPTIONS, PICTURE = "run.json", "loss.png"
MAY_CHANGE = (
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
    """data, steps: prepared folders and how many steps each is trained on, in order. config: a name of SIZES or the path of
    a BertConfig in JSON. batch_tokens: real tokens of one step, over all processes. micro_batch_tokens: of one forward of
    one process. held_out: a prepared folder to evaluate on. precision: 'bf16' (autocast) or 'float32'.
    fsdp: weights, gradients and optimizer state are sharded over the processes (FSDP2) instead of copied (DDP).
    peak_tflops: what utilisation is counted against, of one device; None: measured at the start.
    direction, next_sentence: see `objectives.Objective`."""

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


def run(options: Options, console: Console, *, resume: bool, overwrite: bool = False) -> int:
    """Trains to the end, or until a signal; returns the exit status: 0 at the end, 128 + the signal, 3 for a bad step.

    resume: go on from the last checkpoint in `out` that holds, or say that the run is finished. overwrite: begin again, and
    remove what an earlier run left there. Raises InputError or DataError before anything is written where the options, the
    data and what `out` holds do not fit, another run writes there, or the disk has no room.
    """
    check_flags(resume, overwrite)
    with ending_together(), ExitStack() as stack:
        return _run(options, console, resume, overwrite, stack)


def _run(options: Options, console: Console, resume: bool, overwrite: bool, stack: ExitStack) -> int:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if options.fsdp and world < 2:
        raise InputError(f"expected several processes (torchrun) to shard over with FSDP, got {world}")
    if world == 1 and torch.cuda.device_count() > 1:
        raise InputError(
            f"expected torchrun, or CUDA_VISIBLE_DEVICES naming one GPU, got one process that sees {torch.cuda.device_count()}"
        )
    if options.seed < 0:
        raise InputError(f"expected a seed of at least 0, got {options.seed}")
    if not _is_installed("accelerate"):
        raise InputError("expected accelerate for training, got none installed: pip install 'fastbert-triton[train]'")
    objective = Objective(options.direction, options.next_sentence)
    if options.fsdp and options.direction == "shallow":
        raise InputError("expected no FSDP beside direction shallow, got both")
    for library, what in (("matplotlib", "no loss.png will be drawn"), ("tensorboard", "no curves for TensorBoard")):
        if not _is_installed(library):
            console.print(f"[yellow]{library} is not installed: {what}[/]")
    shards = [Shards(folder) for folder in options.data]
    held_out = None if options.held_out is None else Shards(options.held_out)
    tokenizer = _tokenizer_of(shards + ([held_out] if held_out else []))
    longest = max(one.meta.seq_len for one in [*shards, *([held_out] if held_out else [])])
    config = model_config(options.config, len(tokenizer), longest)
    config.pad_token_id = tokenizer.pad_token_id
    objective.prepare(config)
    identity = _as_json(options, config)  # now: a model writes into its configuration
    args = _arguments(options)
    console.quiet = console.quiet or not args.should_save
    accumulation = math.ceil(options.batch_tokens / (options.micro_batch_tokens * args.world_size))
    args.gradient_accumulation_steps = accumulation
    masker = objective.masker(
        tokenizer, whole_words=options.whole_words, max_predictions=options.max_predictions, seed=options.seed,
        static=options.recipe.static_masking,
    )  # fmt: skip
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    named = None if options.config in SIZES else read_config(Path(options.config)).get("vocab_size")
    if named not in (None, config.vocab_size):
        say(f"vocab_size {config.vocab_size}, that of the tokenizer, not {named} of {options.config}")
    stack.enter_context(locked_together(options.out, say))
    checkpoint = decide_on_rank0(lambda: _where_to_begin(options, identity, resume, overwrite, console))
    if checkpoint is not None and checkpoint.name == f"checkpoint-{sum(options.steps)}":
        say(finished_message(options.out))
        return 0
    if checkpoint is not None and not checkpoint.is_dir():
        raise InputError(f"expected {options.out} on storage that every machine sees, got no {checkpoint.name} on this one")
    first_step = 0 if checkpoint is None else int(checkpoints.verify(checkpoint)["step"])
    try:
        plans = [Plan(one.lengths, options.batch_tokens, options.seed) for one in shards]
        phases = [Phase(one, masker, plan, steps) for one, plan, steps in zip(shards, plans, options.steps)]
        process = (args.process_index, args.world_size)
        batches = MicroBatches(phases, process=process, accumulation=accumulation, first_step=first_step)
    except ValueError as error:
        raise InputError(str(error)) from error

    transformers.set_seed(options.seed)
    model = objective.model(config)
    decide_on_rank0(lambda: _check_room(options, model))

    def create(model: torch.nn.Module) -> tuple[torch.optim.Optimizer, Any]:
        optimizer = create_optimizer(options.recipe, model)
        return optimizer, create_schedule(options.recipe, optimizer, batches.steps)

    # Nobody counts the operations of two stacks.
    rate = None if options.direction == "shallow" else _device_rate(options, args.device, console)
    trainer = PreTrainer(
        model, args, batches, create, held_out=None if held_out is None else (held_out, masker),
        held_out_samples=options.held_out_samples, facts={"tokenizer": shards[0].meta.fingerprint}, tokenizer=tokenizer,
        sharded=options.fsdp, device_rate=rate, objective=objective,
    )  # fmt: skip
    entropy = shards[0].meta.audit.get("entropy")
    trainer.add_callback(StuckAtFrequencies(entropy, options.recipe, batches.steps, console))
    if args.should_save:
        if overwrite:
            _clear(options.out)
        write_whole(options.out / OPTIONS, json.dumps(identity | {"processes": args.world_size}, indent=1) + "\n")
        _introduce(options, batches, model, objective, console)
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
        return 3
    except OSError as error:
        good = [path.name for path in checkpoints.all_of(options.out)][:1]
        kept = f"{good[0]} is there, and --resume continues from it" if good else "there is no checkpoint yet"
        raise OSError(f"{error}; in {options.out} {kept}") from error
    if trainer.stop_signal is not None and trainer.state.global_step < batches.steps:
        console.print(f"stopped at step {trainer.state.global_step} of {batches.steps}; go on with --resume")
        return 128 + trainer.stop_signal
    if args.should_save:
        if _is_installed("matplotlib"):
            plot_losses(trainer.state.log_history, options.out / PICTURE, vocab_size=config.vocab_size, unigram_entropy=entropy)
        what = "with the folders left and right" if options.direction == "shallow" else "a folder"
        console.print(f"finished: {options.out / f'checkpoint-{batches.steps}'}, {what} that transformers loads")
    return 0


def model_config(name: str, vocab_size: int, seq_len: int) -> transformers.BertConfig:
    """The configuration of a named size or of a file, for this vocabulary.

    Raises InputError where it does not exist, is of another model type, or is too short for the data.
    """
    if name in SIZES:
        values: dict[str, Any] = dict(SIZES[name])
    elif Path(name).is_file():
        values = read_config(Path(name))
    else:
        raise InputError(f"expected one of {', '.join(SIZES)} or a JSON file as the configuration, got {name}")
    config = make_config({**values, "vocab_size": vocab_size}, name)
    if config.max_position_embeddings < seq_len:
        raise InputError(f"expected max_position_embeddings of at least {seq_len}, got {config.max_position_embeddings}")
    return config


def _tokenizer_of(shards: list[Shards]) -> Any:
    """The tokenizer that all folders were prepared with."""
    first = shards[0]
    for other in shards[1:]:
        if other.meta.fingerprint != first.meta.fingerprint:
            raise DataError(f"expected one tokenizer for all folders, got another in {other.folder} than in {first.folder}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(first.folder / TOKENIZER)
    if fingerprint(tokenizer) != first.meta.fingerprint:
        raise DataError(f"expected the tokenizer that {first.folder} was prepared with, got another in its {TOKENIZER}/")
    return tokenizer


def _arguments(options: Options) -> transformers.TrainingArguments:
    on_cpu = not torch.cuda.is_available()
    return transformers.TrainingArguments(
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
        report_to=["tensorboard"] if _is_installed("tensorboard") else [],
    )


def _device_rate(options: Options, device: torch.device, console: Console) -> float:
    """FLOP/s that utilisation is counted against."""
    if options.peak_tflops is not None:
        return options.peak_tflops * 1e12
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    rate = matmul_rate(device, dtype)
    console.print(f"mfu counts against {rate / 1e12:.3g} TFLOP/s, a large {options.precision} matrix product measured now")
    return rate


def _is_installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def _where_to_begin(
    options: Options, now: dict[str, Any], resume: bool, overwrite: bool, console: Console
) -> Path | None:  # fmt: skip
    """The checkpoint to go on from, or None for the beginning."""
    found, names = checkpoints.all_of(options.out), visible_names(options.out)
    is_ours = bool(found) or OPTIONS in names
    if names and not is_ours:
        raise foreign_folder_error(options.out, "pretrain", names[0])
    if overwrite or not names:
        return None
    if not resume:
        is_finished = any(path.name == f"checkpoint-{sum(options.steps)}" for path in found)
        raise exists_error(options.out, "is finished" if is_finished else "is unfinished")
    if (options.out / OPTIONS).is_file():
        before = _read_options(options.out / OPTIONS)
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if before.get("processes") != world:
            console.print(
                f"[yellow]{before.get('processes')} processes before, {world} now: the same samples in every step, but other "
                "dropout than an uninterrupted run[/]"
            )
        for name, value in now.items():
            if name not in MAY_CHANGE and before.get(name) != value:
                raise other_options_error(options.out, name, before.get(name), value)
    checkpoint, refused = checkpoints.last_good(options.out)
    for folder, reason in refused.items():
        console.print(f"[yellow]refused {reason}; kept as {checkpoints.set_aside(folder).name}[/]")
    console.print("no checkpoint to continue from: starting over" if checkpoint is None else f"continuing from {checkpoint}")
    return checkpoint


def _read_options(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
    except ValueError as error:
        raise InputError(f"expected the options of a run in {file}, got {error}") from error
    return found


def _clear(out: Path) -> None:
    """Removes what an earlier run left; nothing else. What names the run goes last."""
    for folder in [*out.glob("*checkpoint-*"), *out.glob("stopped-at-step-*"), *out.glob(f"{checkpoints.STAGING}-*")]:
        shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(out / "runs", ignore_errors=True)  # TensorBoard's curves
    for name in (PICTURE, OPTIONS):
        (out / name).unlink(missing_ok=True)


def _check_room(options: Options, model: torch.nn.Module) -> None:
    """Raises InputError where the checkpoints that are kept, and the one that is being written, do not fit on the disk."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    count = min(options.keep, math.ceil(sum(options.steps) / options.save_every)) + 1
    already = sum(size_of(folder) for folder in checkpoints.all_of(options.out)[: options.keep])
    needed = count * 3 * weights - already  # weights and Adam's two moments
    check_room(options.out, needed, f"{count} checkpoints of {3 * weights:,} bytes, the one being written among them")


def _as_json(options: Options, config: transformers.BertConfig) -> dict[str, Any]:
    """The options and what they point to: a run goes on with the same data and model, not with files of the same name."""
    sums = [hashlib.sha256((folder / META).read_bytes()).hexdigest() for folder in options.data]
    values = {**asdict(options), "out": None, "data_sums": sums, "model": config.to_diff_dict()}
    return json.loads(json.dumps(values, default=str))


def _introduce(options: Options, batches: MicroBatches, model: torch.nn.Module, objective: Objective, console: Console) -> None:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    console.print(f"{parameters:,} parameters, {options.precision}, {batches.steps:,} steps of {options.batch_tokens:,} tokens")
    console.print(objective.title)
    console.print(
        f"{options.out}: a checkpoint every {options.save_every:,} steps; stopped or killed, the same command with --resume "
        "continues from the last one",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    for line in describe(options.recipe):
        console.print(f"unlike the preset modern, {line}")
    for phase in batches.phases:
        padded = len(phase.shards) * phase.shards.meta.seq_len
        console.print(
            f"{phase.shards.folder}: {phase.steps:,} steps, {phase.steps / phase.plan.steps_per_epoch:.1f} epochs of "
            f"{len(phase.shards):,} samples; fill rate {np.sum(phase.shards.lengths) / padded:.2f}, padding never computed"
        )
        if options.direction == "both" and options.recipe.static_masking and phase.shards.meta.options.get("duplicates") == 1:
            console.print(
                f"[yellow]{phase.shards.folder} has each document once, and static masking masks it always in the same places; "
                "the original recipe has each ten times, masked differently: fastbert prepare --duplicates 10[/]"
            )


class StuckAtFrequencies(TrainerCallback):
    """Says so where the loss stays at the entropy of single tokens: the model then knows how frequent each is, and no more."""

    NEAR, LOGS = 0.15, 20  # nats; readings in a row

    def __init__(self, entropy: float | None, recipe: Recipe, steps: int, console: Console) -> None:
        self.entropy, self.console, self.readings = entropy, console, 0
        self.warm_up = recipe.num_warmup_steps(steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        loss = None if not logs else logs.get("mlm_loss", logs.get("lm_loss"))
        if self.entropy is None or loss is None or state.global_step < self.warm_up:
            return
        self.readings = self.readings + 1 if abs(loss - self.entropy) < self.NEAR else 0
        if self.readings == self.LOGS and state.is_world_process_zero:
            self.console.print(
                f"[yellow]the loss of tokens has stayed at {self.entropy:.2f} nats, the entropy of single tokens, for "
                f"{self.LOGS} readings: the model knows frequencies and no context. More warm-up, another learning rate or "
                "more steps help."
            )
