"""From a name, a folder or a loaded pair to a model of fastbert's classes with its tokenizer, ready for inference."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from ..checkpoints import InputError, open_checkpoint, quiet
from ..direction import head_class
from ..finetuning.frozen import is_frozen, load_frozen
from ..modeling import berts

# A name or a folder, or (model, tokenizer), the model one of fastbert's classes in eval mode.
Model = str | Path | tuple[Any, Any]
SHOWN_KEYS = 3
POOLINGS = ("mean", "cls", "max")


@dataclass(frozen=True)
class Loaded:
    """name: for messages. limit: most tokens of a sequence, special ones included. path: the checkpoint, None for a pair."""

    name: str
    model: Any
    tokenizer: Any
    limit: int
    path: str | None = None

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def config(self) -> transformers.BertConfig:
        return self.model.config


def load(
    model: Model,
    classes: tuple[str, ...],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **kwargs: Any,
) -> Loaded:
    """model: see `Model`. classes: names of fastbert's classes that can do the task; a checkpoint is loaded as the first, or as
    what stands for it over an encoder that reads in one direction.

    device: None for CUDA if there is one. dtype: None for bfloat16 on CUDA, float32 elsewhere. kwargs: of from_pretrained.
    Raises InputError for another architecture, a checkpoint that lacks a weight the class needs, a missing or unfit tokenizer,
    a pair of other classes or in training mode, or a device or dtype beside a pair.
    """
    if isinstance(model, tuple):
        if device is not None or dtype is not None:
            raise InputError("expected no device or dtype beside a loaded model: it stays where it is")
        return _checked(*_pair(model, classes), None)
    path = str(model)
    source = open_checkpoint(path)
    where = torch.device(device) if device is not None else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = dtype or (torch.bfloat16 if where.type == "cuda" else torch.float32)
    if "BertModel" not in classes and is_frozen(path):
        return _checked(_frozen(path, classes, kind).to(where), source.tokenizer, path, path)
    with quiet():
        try:
            head = head_class(classes[0], source.config)
            found, info = head.from_pretrained(path, dtype=kind, output_loading_info=True, **kwargs)
        except RuntimeError as error:
            raise InputError(f"expected weights of the shapes that config.json names in {path}, got: {error}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        more = f" and {len(missing) - SHOWN_KEYS} more" if len(missing) > SHOWN_KEYS else ""
        raise InputError(
            f"expected a checkpoint with the weights of {' or '.join(classes)}, got {source.class_name} without "
            f"{', '.join(missing[:SHOWN_KEYS])}{more} in {path}"
        )
    return _checked(found.eval().to(where), source.tokenizer, path, path)


def require_offsets(loaded: Loaded) -> None:
    """Raises InputError where the tokenizer cannot tell which characters a token stands for."""
    if not getattr(loaded.tokenizer, "is_fast", False):
        kind = type(loaded.tokenizer).__name__
        raise InputError(f"expected a fast tokenizer, one with a tokenizer.json, in {loaded.name}, got {kind}")


def _frozen(path: str, classes: tuple[str, ...], dtype: torch.dtype) -> Any:
    """An encoder with a head that was trained on its features alone."""
    found = load_frozen(path, dtype=dtype)
    if found.stands_for not in classes:
        raise InputError(f"expected a head of {' or '.join(classes)}, got one of {found.stands_for} in {path}")
    return found


def _pair(model: tuple[Any, ...], classes: tuple[str, ...]) -> tuple[Any, Any, str]:
    if len(model) != 2:
        raise InputError(f"expected a name, a folder or (model, tokenizer), got a tuple of {len(model)}")
    found, tokenizer = model
    name = getattr(found, "name_or_path", "") or type(found).__name__
    if getattr(found, "stands_for", type(found).__name__) not in classes:
        raise InputError(f"expected a model of class {' or '.join(classes)}, got {type(found).__name__}")
    if not any(berts(found)):
        raise InputError(
            f"expected a model of fastbert's classes, got transformers' {type(found).__name__}: load it with "
            f"fastbert.{type(found).__name__}, or swap it with fastbert.accelerate(model)"
        )
    if found.training:
        raise InputError(f"expected a model in eval mode, got {name} in training mode: call model.eval()")
    return found, tokenizer, name


def _checked(model: Any, tokenizer: Any, name: str, path: str | None) -> Loaded:
    if tokenizer is None:
        raise InputError(f"expected a tokenizer beside the checkpoint in {name}, got none that transformers can read")
    config = model.config
    if len(tokenizer) > config.vocab_size:
        raise InputError(
            f"expected a tokenizer of at most {config.vocab_size} entries (vocab_size) for {name}, got {len(tokenizer)}"
        )
    limit = min(config.max_position_embeddings, tokenizer.model_max_length)
    return Loaded(name, model, tokenizer, limit, path)


def sentence_settings(path: str | None, pooling: str | None = None) -> dict[str, Any]:
    """What a checkpoint saved by sentence-transformers says of its vectors: pooling, normalize, max_seq_length.

    path: a folder or a hub name, None for no file to ask; a name is left out where nothing is said of it. pooling: already
    chosen, and then not read. Raises InputError for a pooling that is not mean, cls or max.
    """
    modules = None if path is None else _read_json(path, "modules.json")
    if modules is None:
        return {}
    found: dict[str, Any] = {"normalize": False}
    for module in modules:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Normalize":
            found["normalize"] = True
        elif kind == "Pooling" and pooling is None:
            found["pooling"] = _pooling(str(path), f"{module['path']}/config.json")
        elif kind not in ("Transformer", "Pooling"):
            raise InputError(f"expected modules Transformer, Pooling and Normalize in modules.json of {path}, got {kind}")
    limit = (_read_json(str(path), "sentence_bert_config.json") or {}).get("max_seq_length")
    return found if limit is None else found | {"max_seq_length": int(limit)}


def _read_json(path: str, file: str) -> Any | None:
    found = transformers.utils.cached_file(
        path, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return None if found is None else json.loads(Path(found).read_text(encoding="utf-8"))


def _pooling(path: str, file: str) -> str:
    config = _read_json(path, file) or {}
    old = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}
    asked = [old.get(key, key) for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    mode = config.get("pooling_mode", asked[0] if len(asked) == 1 else asked)
    if mode not in POOLINGS:
        raise InputError(f"expected mean, cls or max pooling in {file} of {path}, got {mode}: name one of the three")
    return mode
