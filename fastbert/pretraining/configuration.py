"""The configuration of a model to pre-train, of a named size or from a file; unknown keys are refused, errors name the key."""

import difflib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import transformers
from transformers.activations import ACT2FN

from fastbert.utils.configurations import check_values
from fastbert.utils.errors import InputError
from fastbert.utils.sizes import SIZES, check_size_or_file

# Keys of saved configurations that are no field of BertConfig: of transformers' base class and older versions, and of the
# original BERT's files, whose pooler_* and directionality describe the one pooler there is.
OTHER_KEYS = {
    "model_type",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "_name_or_path",
    "architectures",
    "finetuning_task",
    "gradient_checkpointing",
    "position_embedding_type",
    "attn_implementation",
    "directionality",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
}


def model_config(name: str, vocab_size: int, seq_len: int) -> transformers.BertConfig:
    """The configuration of a named size or of a file, for this vocabulary.

    Raises InputError where it does not exist, is of another model type, or has fewer positions than seq_len.
    """
    check_size_or_file(name)
    values: dict[str, Any] = dict(SIZES[name]) if name in SIZES else read_config(Path(name))
    config = make_config({**values, "vocab_size": vocab_size}, name)
    if config.max_position_embeddings < seq_len:
        raise InputError(f"expected max_position_embeddings of at least {seq_len}, got {config.max_position_embeddings}")
    return config


def named_vocab_size(name: str) -> int | None:
    """The vocab_size that a configuration file names, which the tokenizer's replaces; None where none is named."""
    return None if name in SIZES else read_config(Path(name)).get("vocab_size")


def read_config(file: Path) -> dict[str, Any]:
    """The values of a configuration in JSON.

    Raises InputError, naming the file and the key, for what is no JSON object, another model type, or an unknown key.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"expected JSON in {file}, got {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"expected a JSON object in {file}, got {type(values).__name__}")
    if values.get("model_type", "bert") != "bert":
        raise InputError(f"expected a configuration of model type 'bert', got {values['model_type']!r} in {file}")
    if values.get("position_embedding_type", "absolute") != "absolute":
        got = values["position_embedding_type"]
        raise InputError(f"expected absolute positions (position_embedding_type) in {file}, got {got!r}")
    known = {field.name for field in fields(transformers.BertConfig)} | OTHER_KEYS
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), 1, 0.5)
            advice = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"expected keys of a BertConfig in {file}, got the unknown {key!r}{advice}")
    return values


def make_config(values: dict[str, Any], name: str) -> transformers.BertConfig:
    """Raises InputError, naming the key, for a value that no BERT can have. name: of the file or size, for messages."""
    try:
        config = transformers.BertConfig(**values)
    except Exception as error:  # huggingface_hub's errors of a field have no base class that is public
        if not type(error).__module__.startswith("huggingface_hub."):
            raise
        raise InputError(f"expected values that fit in the configuration {name}, got: {str(error).splitlines()[-1]}") from error
    check_values(vars(config), f"the configuration {name}")
    if isinstance(config.hidden_act, str) and config.hidden_act not in ACT2FN:
        raise InputError(
            f"expected hidden_act among {', '.join(sorted(ACT2FN))} in the configuration {name}, got {config.hidden_act!r}"
        )
    return config
