"""Which numbers a configuration of BERT can have; transformers says so late, or in a traceback."""

from collections.abc import Mapping
from typing import Any

from .errors import InputError

POSITIVE = (
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)
LAYERS = "num_hidden_layers"
RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")


def check_values(values: Mapping[str, Any], where: str, *, least_layers: int = 1) -> None:
    """Raises InputError, naming the key, for a number that no BERT can have; keys that are absent have transformers' defaults.

    where: the values come from, for messages. least_layers: 0 where a model of embeddings alone is allowed.
    """
    for key, least in (*((key, 1) for key in POSITIVE), (LAYERS, least_layers)):
        value = values.get(key, least)
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"expected a whole number as {key} in {where}, got {value!r}")
        if value < least:
            raise InputError(f"expected {key} of at least {least} in {where}, got {value}")
    for key in RATES:
        value = values.get(key)
        if value is not None and (not isinstance(value, int | float) or not 0.0 <= value < 1.0):
            raise InputError(f"expected {key} from 0 to below 1 in {where}, got {value!r}")
    size, heads = values.get("hidden_size", 768), values.get("num_attention_heads", 12)
    if size % heads and "embedding_size" not in values:  # transformers allows it then
        raise InputError(f"expected hidden_size to be a multiple of num_attention_heads in {where}, got {size} and {heads}")
