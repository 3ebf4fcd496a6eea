"""A SentenceTransformer or CrossEncoder that is loaded already, as the encoder it holds and the settings it would save."""

import copy
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fastbert.model.bert import berts
from fastbert.utils.errors import InputError
from fastbert.utils.folders import MODULES

from .loading import Loaded, checked, name_of
from .sentence_folder import CROSS_ENCODER, ENCODER, MODEL_CONFIG, PACKAGE, read_sentence_folder
from .sentence_settings import MODULE_KEYS, TRANSFORMER_CONFIGS


def kind_of(value: Any) -> str | None:
    """The class of sentence-transformers that an object is of; None where it is of none."""
    for cls in type(value).__mro__:
        if cls.__module__.startswith(PACKAGE):
            return cls.__name__
    return None


def open_object(value: Any, kind: str) -> Loaded:
    """The model that the object holds, not copied, with a copy of its tokenizer and of its modules after the encoder.

    kind: see `kind_of`. Raises InputError for a kind, a module or a setting that is not supported, and where the model inside
    is of transformers' classes.
    """
    if kind not in (ENCODER, CROSS_ENCODER) or not isinstance(value, nn.Sequential):
        raise InputError(f"expected a {ENCODER} or a {CROSS_ENCODER} (of sentence-transformers 5.4 or newer), got a {kind}")
    first: Any = next(iter(value), None)
    model = getattr(first, "auto_model", None)
    if model is None:
        raise InputError(f"expected a {kind} that begins with a Transformer, got {type(first).__name__}")
    if not any(berts(model)):
        raise InputError(
            f"expected a {kind} on fastbert's classes, got one on transformers' {type(model).__name__}: swap it with "
            "fastbert.accelerate(model), or give its name or folder"
        )
    name, settings = name_of(model), tempfile.TemporaryDirectory(prefix="fastbert-")
    try:
        _write_settings(value, kind, Path(settings.name))
        folder = read_sentence_folder(settings.name, kind)
    except InputError as error:
        raise InputError(str(error).replace(settings.name, name)) from error
    assert folder is not None
    limit, activation = getattr(value, "max_seq_length", None), getattr(value, "activation_fn", None)
    folder = replace(folder, limit=limit or folder.limit, activation=activation)
    tokenizer = copy.deepcopy(first.tokenizer)
    if tokenizer is not None:
        folder.prepare(tokenizer)
    loaded = checked(model, tokenizer, name, folder=folder)
    loaded.parts["settings"] = settings  # removed with the last reference
    return loaded


def _write_settings(value: Any, kind: str, folder: Path) -> None:
    """Writes what `save_pretrained` of the object would, without the encoder."""
    listed = []
    for index, (name, module) in enumerate(value.named_children()):
        cls = type(module)
        inside = f"{index}_{cls.__name__}" if index else ""
        listed.append({"idx": index, "name": name, "path": inside, "type": f"{cls.__module__}.{cls.__name__}"})
        if not index:
            _write(folder / TRANSFORMER_CONFIGS[0], module.get_config_dict())
        elif cls.__module__.startswith(PACKAGE) and cls.__name__ in MODULE_KEYS:
            (folder / inside).mkdir()
            module.save(str(folder / inside))
    model = {"model_type": kind}
    for setting in ("prompts", "default_prompt_name", "truncate_dim", "keep_in_fp32_modules"):
        if getattr(value, setting, None) is not None:
            model[setting] = getattr(value, setting)
    _write(folder / MODEL_CONFIG, model)
    _write(folder / MODULES, listed)


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, default=str), encoding="utf-8")
