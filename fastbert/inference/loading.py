"""From a name, a folder or a loaded pair to a model of fastbert's classes with its tokenizer, ready for inference."""

import threading
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers

from fastbert.model.bert import berts
from fastbert.model.variants.frozen import is_frozen, load_frozen
from fastbert.model.variants.left_to_right import LEFT_TO_RIGHT, head_class
from fastbert.model.variants.shallow import HEADS as SHALLOW
from fastbert.utils.checkpoints import SHOWN_KEYS, Checkpoint, open_checkpoint
from fastbert.utils.errors import InputError
from fastbert.utils.vocabulary import advice, misfit

from .sentence_folder import SentenceFolder, read_sentence_folder

# A name or a folder, or (model, tokenizer) with a model of fastbert's classes in eval mode.
Model = str | Path | tuple[Any, Any]
# Classes whose weights have the same names and shapes.
ALIKE = ("BertForSequenceClassification", "BertForTokenClassification", "BertForMultipleChoice")
# transformers builds a model under a default dtype of the whole process, so that no two threads may load at once.
LOADING = threading.RLock()
Part = TypeVar("Part")

_finding_lock = threading.Lock()
_locks: "weakref.WeakKeyDictionary[Any, threading.RLock]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer.

    name: for messages. limit: most tokens of a sequence, special ones included. path: of the weights, None for a given pair.
    folder: what sentence-transformers saved with the weights, None where it did not. lock: to be held while the tokenizer runs,
    as a call sets how it cuts texts. parts: see `part`.
    """

    name: str
    model: Any
    tokenizer: Any
    limit: int
    path: str | None = None
    folder: SentenceFolder | None = None
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    parts: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def config(self) -> transformers.BertConfig:
        return self.model.config

    def part(self, key: Hashable, build: Callable[[], Part]) -> Part:
        """What `build` made of this model at the first call with the key."""
        if key not in self.parts:
            with LOADING:
                if key not in self.parts:
                    self.parts[key] = build()
        return self.parts[key]


def load(
    model: Model,
    classes: tuple[str, ...],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    sentences: str | None = None,
    **kwargs: Any,
) -> Loaded:
    """Loads a checkpoint for a task, or checks a loaded pair.

    model: see `Model`. classes: names of fastbert's classes that can do the task; a checkpoint is loaded as the first, or as
    its counterpart over a left-to-right or shallow encoder. device: None for CUDA if there is one. dtype: None for bfloat16
    on CUDA, float32 elsewhere. sentences: ENCODER or CROSS_ENCODER, to follow the settings of such a folder of
    sentence-transformers. kwargs: for from_pretrained.
    Raises InputError, in one line, for a checkpoint that cannot be read, of another architecture or task, or without a weight
    that the class needs, a tokenizer that is missing or does not belong to the weights, a pair of other classes or in training
    mode, or a device or dtype beside a pair.
    """
    if isinstance(model, tuple):
        if device is not None or dtype is not None:
            raise InputError("expected no device or dtype beside a loaded model, which is not moved")
        require_fit(model, classes)
        return checked(*model, name_of(model[0]))
    with LOADING, torch.inference_mode(False):
        return _read(str(model), classes, *resolve(device, dtype), sentences, kwargs)


def resolve(device: torch.device | str | None, dtype: torch.dtype | None) -> tuple[torch.device, torch.dtype]:
    """The device and dtype of a checkpoint: None for CUDA if there is one, and for bfloat16 on CUDA, float32 elsewhere."""
    target = _device(device)
    return target, dtype or (torch.bfloat16 if target.type == "cuda" else torch.float32)


def _read(
    path: str,
    classes: tuple[str, ...],
    target: torch.device,
    dtype: torch.dtype,
    sentences: str | None,
    kwargs: dict[str, Any],
) -> Loaded:
    source = open_checkpoint(path)
    folder = None if sentences is None else read_sentence_folder(path, sentences)
    if "BertModel" not in classes and is_frozen(source.path):
        found = _frozen(source.path, classes, dtype)
    else:
        head = head_class(classes[0], source.config)
        _refuse_other_tasks(source, classes, path)
        found, info = source.read(head, dtype=dtype, **kwargs)
        missing = sorted(info["missing_keys"])
        if missing:
            more = f" and {len(missing) - SHOWN_KEYS} more" if len(missing) > SHOWN_KEYS else ""
            raise InputError(
                f"expected a checkpoint with the weights of {' or '.join(classes)}, got {source.saved_from or 'one'} without "
                f"{', '.join(missing[:SHOWN_KEYS])}{more} in {path}"
            )
        if source.saved_from is None and classes[0] in ALIKE:
            raise InputError(
                f"expected architectures in the config.json of {path}, got none, and its weights could be of "
                f'{" or ".join(ALIKE)}: if they are, add "architectures": ["{classes[0]}"]'
            )
    tokenizer = source.require_tokenizer()
    if folder is not None:
        folder.prepare(tokenizer)
    return checked(found.eval().to(target), tokenizer, path, path=source.path, folder=folder)


def _device(wanted: torch.device | str | None) -> torch.device:
    """Raises InputError for a name that is none, and for a GPU where there is none."""
    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise InputError(f"expected a device such as cpu, cuda or cuda:1, got {wanted!r}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"expected a device of this machine, got {device}, and PyTorch sees {torch.cuda.device_count()} GPUs")
    return device


def _refuse_other_tasks(source: Checkpoint, classes: tuple[str, ...], path: str) -> None:
    """Raises InputError where `architectures` names another class: its head may have weights of the same names and shapes."""
    fit = {head.__name__ for name in classes for head in (LEFT_TO_RIGHT.get(name), SHALLOW.get(name)) if head is not None}
    fit.update(classes)
    if source.saved_from is not None and source.saved_from not in fit:
        hint = "" if "BertModel" in classes else ": `fastbert finetune` gives it a head"
        names = " or ".join(classes) if len(classes) <= SHOWN_KEYS else "one of BERT's classes"
        raise InputError(f"expected a checkpoint of {names}, got one of {source.saved_from} in {path}{hint}")


def require_offsets(loaded: Loaded) -> None:
    """Raises InputError where the tokenizer does not map tokens to characters."""
    if not getattr(loaded.tokenizer, "is_fast", False):
        kind = type(loaded.tokenizer).__name__
        raise InputError(f"expected a fast tokenizer, one with a tokenizer.json, in {loaded.name}, got {kind}")


def _frozen(path: str, classes: tuple[str, ...], dtype: torch.dtype) -> Any:
    """An encoder with a head trained on its frozen features."""
    found = load_frozen(path, dtype=dtype)
    if found.task_class not in classes:
        raise InputError(f"expected a head of {' or '.join(classes)}, got one of {found.task_class} in {path}")
    return found


def name_of(model: Any) -> str:
    """What messages call a loaded model."""
    return str(getattr(model, "name_or_path", "") or type(model).__name__)


def require_fit(pair: tuple[Any, ...], classes: tuple[str, ...]) -> None:
    """Raises InputError, which says what to do, where it is no (model, tokenizer) of one of these classes in eval mode."""
    if len(pair) != 2:
        raise InputError(f"expected a name, a folder or (model, tokenizer), got a tuple of {len(pair)}")
    found = pair[0]
    if getattr(found, "task_class", type(found).__name__) not in classes:
        raise InputError(f"expected a model of class {' or '.join(classes)}, got {type(found).__name__}")
    if not any(berts(found)):
        raise InputError(
            f"expected a model of fastbert's classes, got transformers' {type(found).__name__}: load it with "
            f"fastbert.{type(found).__name__}, or swap it with fastbert.accelerate(model)"
        )
    if found.training:
        raise InputError(f"expected a model in eval mode, got {name_of(found)} in training mode: call model.eval()")


def checked(model: Any, tokenizer: Any, name: str, *, path: str | None = None, folder: SentenceFolder | None = None) -> Loaded:
    """Raises InputError where the tokenizer of a given model does not belong to it. path: None for a given model."""
    if path is None and (wrong := "none" if tokenizer is None else misfit(tokenizer, model.config)) is not None:
        raise InputError(advice(name, wrong))
    limit = min(model.config.max_position_embeddings, tokenizer.model_max_length)
    return Loaded(name, model, tokenizer, limit, path, folder, lock_of(tokenizer))


def lock_of(tokenizer: Any) -> threading.RLock:
    """The lock of a tokenizer, the same for every call that is given it."""
    with _finding_lock:
        return _locks.setdefault(tokenizer, threading.RLock())
