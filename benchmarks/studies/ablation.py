"""The ablation of Devlin et al. 2019, section 5.1, at small size: BERT, without next sentences, left to right.

python -m benchmarks.studies.ablation --text FILE --held-out FILE --task pair=TRAIN,EVAL --steps N --seeds K --out DIR

All three are pre-trained on the same samples for the same number of steps from K seeds each, then fine-tuned alike on every
task. What is finished is not run again: the same command continues, also with more seeds or tasks.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.harness.conditions import conditions
from fastbert.cli.console import console as screen
from fastbert.cli.errors import plain_errors
from fastbert.finetuning.options import Setting
from fastbert.utils.errors import InputError
from fastbert.utils.files import write_whole

from .ablation_runs import FOLDERS, Ablation, begin, finetune_row, held_out_metrics, prepare_samples, pretrain_row
from .ablation_table import AGAINST, LEFT, ROWS, table_of, verdict
from .tasks import Task, parse_task

SMALL = dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024, max_position_embeddings=512)
RECORD = "record.json"
NOTES = (
    "A difference is claimed only where it is larger than the half-width of its 95% interval over the seeds (Welch's t).",
    "Perplexities of masked tokens and of next tokens are of different questions: not to be compared.",
)


@dataclass
class Results:
    """What the runs gave, by row of the table.

    scores: of each task, in percent, by seed. evaluations: metrics on held-out text, by seed. metrics: what each task's score
    is. degenerate: fine-tunings that did not learn, as lines of text.
    """

    scores: dict[str, dict[str, list[float | None]]]
    evaluations: dict[str, list[dict[str, float]]]
    metrics: dict[str, str] = field(default_factory=dict)
    degenerate: list[str] = field(default_factory=list)


def ablate(ablation: Ablation, tasks: Sequence[Task], seeds: int, console: Console) -> dict[str, Any] | int:
    """Runs what is not finished, prints the table, and writes and returns the record; or returns a status that stopped a run.

    Raises InputError where the folder was started with other options or two tasks have one name.
    """
    names = [task.name for task in tasks]
    if len(set(names)) < len(names) or not names:
        raise InputError(
            f"expected at least one task, each evaluated on a file of another name, got {', '.join(names) or 'none'}"
        )
    begin(ablation)
    folders = prepare_samples(ablation)
    results = Results({row: {name: [] for name in names} for row in ROWS}, {row: [] for row in ROWS})
    for seed in range(seeds):
        for row in ROWS:
            folder = ablation.out / FOLDERS[row] / f"seed-{seed}"
            status = pretrain_row(ablation, row, seed, folder / "pretrained", folders, console)
            if status:
                return status
            checkpoint = folder / "pretrained" / f"checkpoint-{ablation.steps}"
            results.evaluations[row].append(held_out_metrics(checkpoint))
            for task in tasks:
                report = finetune_row(ablation, task, seed, checkpoint, folder / task.name, console)
                score = report["score"]
                results.metrics[task.name] = report["headline"]
                results.scores[row][task.name].append(None if score is None else task.scale * score)
                if report["degenerate"]:
                    results.degenerate.append(f"{row}, seed {seed}, {task.name}: {report['degenerate']}")
    return _conclude(ablation, results, console)


def _conclude(ablation: Ablation, results: Results, console: Console) -> dict[str, Any]:
    """Prints the table and writes the record."""
    scores = results.scores
    perplexities = {}
    for row in ROWS:
        values = [metrics["eval_perplexity"] for metrics in results.evaluations[row]]
        predicted = "next token" if row == LEFT else "masked token"
        perplexities[row] = f"{sum(values) / len(values):.1f}\n{predicted}"
    console.print(table_of(scores, results.metrics, perplexities))
    for line in (*NOTES, *(f"degenerate: {run}" for run in results.degenerate)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    verdicts = {
        row: {
            name: {other: asdict(verdict(scores[row][name], scores[other][name])) for other in AGAINST[row]}
            for name in results.metrics
        }
        for row in ROWS
    }
    record = {
        "options": ablation.identity(),
        "scores": scores,
        "metrics": results.metrics,
        "held_out": results.evaluations,
        "verdicts": verdicts,
        "degenerate": results.degenerate,
        "conditions": conditions(),
    }
    write_whole(ablation.out / RECORD, json.dumps(record, indent=1) + "\n")
    return record


def main(
    text: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="To pre-train on, as `fastbert prepare` reads it.")],
    held_out: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The same, for the perplexity.")],
    task: Annotated[list[str], typer.Option(help="KIND=TRAIN,EVAL as of `fastbert finetune`; again for another task.")],
    steps: Annotated[int, typer.Option(min=1, help="Of each pre-training.")],
    out: Annotated[Path, typer.Option(help="Folder for everything; one that was interrupted is continued.")],
    seeds: Annotated[int, typer.Option(min=1, help="Pre-trainings of each row; from two on there is a spread.")] = 3,
    config: Annotated[Path | None, typer.Option(help="BertConfig as JSON. Default: 4 layers of width 256.")] = None,
    vocab_size: Annotated[int, typer.Option(min=6, help="Of the vocabulary that is trained on the text.")] = 8000,
    seq_len: Annotated[int, typer.Option(min=8, help="Most tokens of a sample.")] = 128,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Real tokens of a pre-training step.")] = 8192,
    micro_batch_tokens: Annotated[int, typer.Option(min=1, help="Real tokens of one forward.")] = 8192,
    learning_rate: Annotated[float, typer.Option(help="Of pre-training, at its peak.")] = 5e-4,
    epochs: Annotated[float, typer.Option(help="Of fine-tuning.")] = 3.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Of fine-tuning.")] = 32,
    finetuning_rate: Annotated[float, typer.Option(help="Learning rate of fine-tuning, at its peak.")] = 5e-5,
    workers: Annotated[int, typer.Option(min=0, help="Processes that make batches.")] = 0,
) -> None:
    """Run the paper's ablation and print it beside the paper's, claiming no difference that seeds alone may cause."""
    import torch

    with plain_errors():
        try:
            model = SMALL if config is None else json.loads(config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"expected JSON in {config}, got {error}") from error
        ablation = Ablation(
            text,
            held_out,
            steps,
            out,
            dict(model),
            vocab_size,
            seq_len,
            batch_tokens,
            micro_batch_tokens,
            learning_rate,
            "bf16" if torch.cuda.is_available() else "float32",
            workers,
            Setting(batch_size=batch_size, learning_rate=finetuning_rate, epochs=epochs),
            max_length=seq_len,
        )
        try:
            found = ablate(ablation, [parse_task(one) for one in task], seeds, screen())
        except KeyboardInterrupt as error:
            typer.echo("interrupted; the same command continues from the last finished part", err=True)
            raise typer.Exit(130) from error
    if isinstance(found, int):
        raise typer.Exit(found)


if __name__ == "__main__":
    typer.run(main)
