"""The ablation of Devlin et al. 2019, section 5.1, at small size: BERT, without next sentences, left to right.

python -m benchmarks.studies.ablation --text FILE --held-out FILE --task pair=TRAIN,EVAL --steps N --seeds K --out DIR

The three are pre-trained on the same samples for as many steps from K seeds each, then fine-tuned alike on every task. What is
finished is not done again: the same command continues, also with more seeds or tasks.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.harness.conditions import conditions
from fastbert.cli.console import console as screen
from fastbert.cli.errors import plain_errors
from fastbert.data.prepare import prepare
from fastbert.data.wordpiece import train_wordpiece
from fastbert.finetuning.data import DataOptions
from fastbert.finetuning.options import Options as FineTuning
from fastbert.finetuning.options import Setting
from fastbert.finetuning.run import finetune
from fastbert.finetuning.task_types import TASKS
from fastbert.pretraining.options import Options as PreTraining
from fastbert.pretraining.recipe import PRESETS
from fastbert.pretraining.run import run as pretrain
from fastbert.training import checkpoints
from fastbert.utils.errors import InputError
from fastbert.utils.files import write_whole

from .ablation_table import AGAINST, BERT, LEFT, NO_PAIRS, ROWS, table_of, verdict

SMALL = dict(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024, max_position_embeddings=512)
OBJECTIVES: dict[str, dict[str, Any]] = {
    BERT: dict(direction="both", next_sentence=True),
    NO_PAIRS: dict(direction="both", next_sentence=False),
    LEFT: dict(direction="left", next_sentence=False),
}
FOLDERS = {BERT: "bert", NO_PAIRS: "no-nsp", LEFT: "left-to-right"}
IDENTITY, RECORD = "ablation.json", "record.json"
NOTES = (
    "A difference is claimed only where it is larger than the half-width of its 95% interval over the seeds (Welch's t).",
    "Perplexities of masked tokens and of next tokens are of different questions: not to be compared.",
)


@dataclass(frozen=True)
class Task:
    """One to fine-tune on. kind: of `fastbert finetune`."""

    kind: str
    train: Path
    evaluation: Path

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.evaluation.stem}"

    @property
    def scale(self) -> float:
        """What makes percent of its score."""
        return 1.0 if self.kind == "qa" else 100.0


@dataclass(frozen=True)
class Ablation:
    """What stays the same in all runs. config: of the models, options of BertConfig. learning_rate: of pre-training."""

    text: Path
    held_out: Path
    steps: int
    out: Path
    config: dict[str, Any]
    vocab_size: int = 8000
    seq_len: int = 128
    batch_tokens: int = 8192
    micro_batch_tokens: int = 8192
    learning_rate: float = 5e-4
    precision: str = "float32"
    workers: int = 0
    setting: Setting = field(default_factory=Setting)
    max_length: int | None = 128

    def identity(self) -> dict[str, Any]:
        """What a folder's runs have in common, the text by its content."""
        values = {name: value for name, value in asdict(self).items() if name not in ("out", "workers", "micro_batch_tokens")}
        for name in ("text", "held_out"):
            values[name] = hashlib.sha256(getattr(self, name).read_bytes()).hexdigest()
        return json.loads(json.dumps(values))


def parse_task(text: str) -> Task:
    """KIND=TRAIN,EVAL. Raises InputError."""
    kind, _, files = text.partition("=")
    train, _, evaluation = files.partition(",")
    if kind not in TASKS or not train or not evaluation:
        raise InputError(f"expected a task as KIND=TRAIN,EVAL with a kind among {', '.join(TASKS)}, got {text!r}")
    for file in (train, evaluation):
        if not Path(file).is_file():
            raise InputError(f"expected a file for the task {kind}, got {file}")
    return Task(kind, Path(train), Path(evaluation))


def ablate(ablation: Ablation, tasks: Sequence[Task], seeds: int, console: Console) -> dict[str, Any] | int:
    """Runs what is not finished, prints the table and writes the record, which is returned; or a status that stopped a run.

    Raises InputError where the folder was begun with other options or two tasks have one name.
    """
    names = [task.name for task in tasks]
    if len(set(names)) < len(names) or not names:
        raise InputError(
            f"expected at least one task, each evaluated on a file of another name, got {', '.join(names) or 'none'}"
        )
    _begin(ablation)
    folders = _prepare(ablation)
    scores: dict[str, dict[str, list[float | None]]] = {row: {name: [] for name in names} for row in ROWS}
    metrics: dict[str, str] = {}
    degenerate: list[str] = []
    evaluations: dict[str, list[dict[str, float]]] = {row: [] for row in ROWS}
    for seed in range(seeds):
        for row in ROWS:
            folder = ablation.out / FOLDERS[row] / f"seed-{seed}"
            status = _pretrain(ablation, row, seed, folder / "pretrained", folders, console)
            if status:
                return status
            checkpoint = folder / "pretrained" / f"checkpoint-{ablation.steps}"
            evaluations[row].append(_held_out(checkpoint))
            for task in tasks:
                data = DataOptions(task.train, task.evaluation, max_length=ablation.max_length)
                setting = replace(ablation.setting, seed=seed)
                options = FineTuning(
                    task.kind, str(checkpoint), data, folder / task.name, setting, precision=ablation.precision,
                    keep_epoch="last",
                )  # fmt: skip
                report = finetune(options, console, resume=True)
                metrics[task.name] = report["headline"]
                scores[row][task.name].append(None if report["score"] is None else task.scale * report["score"])
                if report["degenerate"]:
                    degenerate.append(f"{row}, seed {seed}, {task.name}: {report['degenerate']}")
    return _conclude(ablation, scores, metrics, evaluations, degenerate, console)


def _begin(ablation: Ablation) -> None:
    identity, file = ablation.identity(), ablation.out / IDENTITY
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        for name, value in identity.items():
            if before.get(name) != value:
                raise InputError(f"expected {name} {before.get(name)!r}, with which {ablation.out} was started, got {value!r}")
    elif ablation.out.exists() and (not ablation.out.is_dir() or any(ablation.out.iterdir())):
        raise InputError(f"expected a new or empty folder, or one of this ablation, got {ablation.out}")
    ablation.out.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(identity, indent=1) + "\n")
    write_whole(ablation.out / "config.json", json.dumps(ablation.config, indent=1) + "\n")


def _prepare(ablation: Ablation) -> tuple[Path, Path]:
    """The vocabulary of the text, and the folders of its samples and of the held-out ones."""
    tokenizer = ablation.out / "tokenizer"
    if not tokenizer.exists():
        train_wordpiece([str(ablation.text)], tokenizer, vocab_size=ablation.vocab_size)
    folders = ablation.out / "samples", ablation.out / "held-out"
    for file, folder in zip((ablation.text, ablation.held_out), folders):
        prepare([str(file)], tokenizer, folder, seq_len=ablation.seq_len, resume=True)
    return folders


def _pretrain(ablation: Ablation, row: str, seed: int, out: Path, folders: tuple[Path, Path], console: Console) -> int:
    last, _ = checkpoints.last_good(out)
    if last is not None and last.name == f"checkpoint-{ablation.steps}":
        console.print(f"{row}, seed {seed}: was pre-trained before", markup=False, highlight=False)
        return 0
    console.print(f"{row}, seed {seed}: pre-training", markup=False, highlight=False)
    options = PreTraining(
        data=(folders[0],), steps=(ablation.steps,), out=out, config=str(ablation.out / "config.json"),
        recipe=replace(PRESETS["modern"], learning_rate=ablation.learning_rate), batch_tokens=ablation.batch_tokens,
        micro_batch_tokens=ablation.micro_batch_tokens, precision=ablation.precision, seed=seed, held_out=folders[1],
        save_every=max(1, ablation.steps // 4), evaluate_every=ablation.steps, log_every=max(1, ablation.steps // 50), keep=1,
        workers=ablation.workers, **OBJECTIVES[row],
    )  # fmt: skip
    return pretrain(options, console, resume=True)


def _held_out(checkpoint: Path) -> dict[str, float]:
    """The run's last evaluation on held-out text."""
    history = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return next(
        {name: value for name, value in entry.items() if name.startswith("eval_")}
        for entry in reversed(history)
        if "eval_perplexity" in entry
    )


def _conclude(
    ablation: Ablation, scores: Mapping[str, Mapping[str, list[float | None]]], metrics: dict[str, str],
    evaluations: dict[str, list[dict[str, float]]], degenerate: list[str], console: Console,
) -> dict[str, Any]:  # fmt: skip
    perplexities = {}
    for row in ROWS:
        values = [one["eval_perplexity"] for one in evaluations[row]]
        what = "next token" if row == LEFT else "masked token"
        perplexities[row] = f"{sum(values) / len(values):.1f}\n{what}"
    console.print(table_of(scores, metrics, perplexities))
    for line in (*NOTES, *(f"degenerate: {one}" for one in degenerate)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    verdicts = {
        row: {
            name: {other: asdict(verdict(scores[row][name], scores[other][name])) for other in AGAINST[row]} for name in metrics
        }
        for row in ROWS
    }
    record = {
        "options": ablation.identity(), "scores": scores, "metrics": metrics, "held_out": evaluations, "verdicts": verdicts,
        "degenerate": degenerate, "conditions": conditions(),
    }  # fmt: skip
    write_whole(ablation.out / RECORD, json.dumps(record, indent=1) + "\n")
    return record


def main(
    text: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="To pre-train on, as `fastbert prepare` reads it.")],
    held_out: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The same, for the perplexity.")],
    task: Annotated[list[str], typer.Option(help="KIND=TRAIN,EVAL as of `fastbert finetune`; again for another task.")],
    steps: Annotated[int, typer.Option(min=1, help="Of each pre-training.")],
    out: Annotated[Path, typer.Option(help="Folder for everything; one that was interrupted is gone on with.")],
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
    """Print the paper's ablation beside ours, claiming no difference that seeds alone may make."""
    import torch

    with plain_errors():
        try:
            model = SMALL if config is None else json.loads(config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"expected JSON in {config}, got {error}") from error
        ablation = Ablation(
            text, held_out, steps, out, dict(model), vocab_size, seq_len, batch_tokens, micro_batch_tokens, learning_rate,
            "bf16" if torch.cuda.is_available() else "float32", workers,
            Setting(batch_size=batch_size, learning_rate=finetuning_rate, epochs=epochs), seq_len,
        )  # fmt: skip
        try:
            found = ablate(ablation, [parse_task(one) for one in task], seeds, screen())
        except KeyboardInterrupt as error:
            typer.echo("interrupted; the same command continues from the last finished part", err=True)
            raise typer.Exit(130) from error
    if isinstance(found, int):
        raise typer.Exit(found)


if __name__ == "__main__":
    typer.run(main)
