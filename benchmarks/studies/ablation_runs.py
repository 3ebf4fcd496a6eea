"""The runs of an ablation in its folder: samples, pre-trainings, fine-tunings. What is finished is not run again."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fastbert.data.prepare import prepare
from fastbert.data.wordpiece import train_wordpiece
from fastbert.finetuning.data import DataOptions
from fastbert.finetuning.options import Options as FineTuning
from fastbert.finetuning.options import Setting
from fastbert.finetuning.run import finetune
from fastbert.pretraining.options import Options as PreTraining
from fastbert.pretraining.recipe import PRESETS
from fastbert.pretraining.run import run as pretrain
from fastbert.training import checkpoints
from fastbert.utils.errors import InputError
from fastbert.utils.files import write_whole

from .ablation_table import BERT, LEFT, NO_PAIRS
from .tasks import Task

OBJECTIVES: dict[str, dict[str, Any]] = {
    BERT: dict(direction="both", next_sentence=True),
    NO_PAIRS: dict(direction="both", next_sentence=False),
    LEFT: dict(direction="left", next_sentence=False),
}
FOLDERS = {BERT: "bert", NO_PAIRS: "no-nsp", LEFT: "left-to-right"}
IDENTITY = "ablation.json"


@dataclass(frozen=True)
class Ablation:
    """What is the same in all runs.

    text, held_out: to pre-train on, and for the perplexity. config: of the models, options of BertConfig. learning_rate: of
    pre-training. setting: of fine-tuning, but for the seed.
    """

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
        """What the runs of one folder have in common as JSON values, texts as hashes of their content."""
        values = {name: value for name, value in asdict(self).items() if name not in ("out", "workers", "micro_batch_tokens")}
        for name in ("text", "held_out"):
            values[name] = hashlib.sha256(getattr(self, name).read_bytes()).hexdigest()
        return json.loads(json.dumps(values))


def begin(ablation: Ablation) -> None:
    """Marks the folder as this ablation's.

    Raises InputError where it holds something else, or an ablation that was started with other options.
    """
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


def prepare_samples(ablation: Ablation) -> tuple[Path, Path]:
    """The folders of the text's samples and of the held-out ones; the vocabulary is trained on the text."""
    tokenizer = ablation.out / "tokenizer"
    if not tokenizer.exists():
        train_wordpiece([str(ablation.text)], tokenizer, vocab_size=ablation.vocab_size)
    folders = ablation.out / "samples", ablation.out / "held-out"
    for file, folder in zip((ablation.text, ablation.held_out), folders):
        prepare([str(file)], tokenizer, folder, seq_len=ablation.seq_len, resume=True)
    return folders


def pretrain_row(ablation: Ablation, row: str, seed: int, out: Path, folders: tuple[Path, Path], console: Console) -> int:
    """Pre-trains the model of one row of the table unless it is finished, and returns the exit status."""
    last, _ = checkpoints.last_good(out)
    if last is not None and last.name == f"checkpoint-{ablation.steps}":
        console.print(f"{row}, seed {seed}: was pre-trained before", markup=False, highlight=False)
        return 0
    console.print(f"{row}, seed {seed}: pre-training", markup=False, highlight=False)
    options = PreTraining(
        data=(folders[0],),
        steps=(ablation.steps,),
        out=out,
        config=str(ablation.out / "config.json"),
        recipe=replace(PRESETS["modern"], learning_rate=ablation.learning_rate),
        batch_tokens=ablation.batch_tokens,
        micro_batch_tokens=ablation.micro_batch_tokens,
        precision=ablation.precision,
        seed=seed,
        held_out=folders[1],
        save_every=max(1, ablation.steps // 4),
        evaluate_every=ablation.steps,
        log_every=max(1, ablation.steps // 50),
        keep=1,
        workers=ablation.workers,
        **OBJECTIVES[row],
    )
    return pretrain(options, console, resume=True)


def finetune_row(ablation: Ablation, task: Task, seed: int, checkpoint: Path, out: Path, console: Console) -> dict[str, Any]:
    """The report of fine-tuning one model on one task, read from its folder where it is finished."""
    data = DataOptions(task.train, task.evaluation, max_length=ablation.max_length)
    setting = replace(ablation.setting, seed=seed)
    options = FineTuning(task.kind, str(checkpoint), data, out, setting, precision=ablation.precision, keep_epoch="last")
    return finetune(options, console, resume=True)


def held_out_metrics(checkpoint: Path) -> dict[str, float]:
    """The metrics of the run's last evaluation on held-out text."""
    history = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return next(
        {name: value for name, value in entry.items() if name.startswith("eval_")}
        for entry in reversed(history)
        if "eval_perplexity" in entry
    )
