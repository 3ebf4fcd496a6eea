"""The types of task, by name."""

from fastbert.utils.checkpoints import Checkpoint
from fastbert.utils.errors import InputError

from .data import DataOptions, TaskData
from .questions import load_questions
from .sentences import load_choices, load_sentences
from .tagging import load_tagged

TASKS = ("classify", "pair", "qa", "tag", "choice")


def load_task(name: str, data: DataOptions, checkpoint: Checkpoint) -> TaskData:
    """The features and metrics of a task, one of TASKS, built with the checkpoint's tokenizer."""
    tokenizer, config = checkpoint.tokenizer, checkpoint.config
    if name in ("classify", "pair"):
        return load_sentences(data, tokenizer, config, pair=name == "pair")
    if name == "choice":
        return load_choices(data, tokenizer, config)
    if name == "qa":
        return load_questions(data, tokenizer, config)
    if name == "tag":
        return load_tagged(data, tokenizer, config)
    raise InputError(f"expected a task among {', '.join(TASKS)}, got {name!r}")
