"""The settings that sentence-transformers, up to version 6, saves in the files of a folder, and checks of their values.

A setting that changes vectors is followed or refused; the others are listed here, so that an unknown one can be refused too.
"""

from collections.abc import Collection
from typing import Any

from fastbert.utils.errors import InputError
from fastbert.utils.folders import read_json

# Files of the Transformer module: sentence-transformers reads the first one there is, whatever the model.
TRANSFORMER_CONFIGS = tuple(
    f"sentence_{name}_config.json" for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
MODEL_KEYS = (
    "__version__",
    "model_type",
    "prompts",
    "default_prompt_name",
    "similarity_fn_name",
    "truncate_dim",
    "requirements",
)
CROSS_ENCODER_KEYS = ("activation_fn", "keep_in_fp32_modules")
# Keyword arguments of the module's model, tokenizer and configuration, by their (old name, new name), with those keys that are
# followed or change no vector.
KEYWORDS = {
    ("model_args", "model_kwargs"): ("attn_implementation", "dtype", "torch_dtype", "add_pooling_layer", "trust_remote_code"),
    ("tokenizer_args", "processor_kwargs"): ("model_max_length", "padding_side", "use_fast", "trust_remote_code"),
    ("config_args", "config_kwargs"): ("trust_remote_code",),
}
TRANSFORMER_KEYS = (
    "max_seq_length",
    "do_lower_case",
    "transformer_task",
    "modality_config",
    "module_output_name",
    "processing_kwargs",
    "unpad_inputs",
    "query_length",
    "document_length",
    "query_expansion",
    "tokenizer_name_or_path",
    *(name for names in KEYWORDS for name in names),
)
# Settings of the modules after the Transformer.
MODULE_KEYS = {
    "Pooling": (
        "embedding_dimension",
        "word_embedding_dimension",
        "pooling_mode",
        "include_prompt",
        "pooling_mode_cls_token",
        "pooling_mode_max_tokens",
        "pooling_mode_mean_tokens",
        "pooling_mode_mean_sqrt_len_tokens",
        "pooling_mode_weightedmean_tokens",
        "pooling_mode_lasttoken",
    ),
    "Dense": (
        "in_features",
        "out_features",
        "bias",
        "activation_function",
        "module_input_name",
        "module_output_name",
        "use_residual",
    ),
    "Normalize": ("module_input_name", "module_output_name"),
    "LayerNorm": ("dimension",),
    "Dropout": ("dropout",),
}


def read_settings(path: str, file: str, known: Collection[str]) -> dict[str, Any]:
    """The content of a file, {} where there is none. Raises InputError for an unknown setting."""
    content = read_json(path, file) if file else None
    if content is None:
        return {}
    require_known(path, file, content, known)
    return content


def require_known(path: str, file: str, content: Any, known: Collection[str], prefix: str = "") -> None:
    """Raises InputError where the content is no object, or has another key than the known ones."""
    if not isinstance(content, dict):
        raise InputError(f"expected {prefix.rstrip('.') or 'settings'} by name in {file} of {path}, got {content!r}")
    unknown = sorted(content.keys() - set(known))
    if unknown:
        names = ", ".join(f"{prefix}{name}" for name in unknown)
        raise InputError(f"expected settings that fastbert knows in {file} of {path}, got {names}")


def require_value(path: str, file: str, content: dict[str, Any], name: str, *wanted: Any) -> None:
    """Raises InputError where a setting has a value other than those wanted."""
    if name in content and content[name] not in wanted:
        raise InputError(f"expected {name} to be {wanted[0]!r} in {file} of {path}, got {content[name]!r}")


def require_type(path: str, file: str, name: str, value: Any, kind: type) -> Any:
    """The value, of that type or None. Raises InputError for another type."""
    if value is not None and not isinstance(value, kind):
        raise InputError(f"expected {name} of type {kind.__name__} in {file} of {path}, got {value!r}")
    return value


def require_size(path: str, file: str, name: str, value: Any) -> int | None:
    """The value, at least 1 or None. Raises InputError for any other."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise InputError(f"expected {name} of at least 1 in {file} of {path}, got {value!r}")
    return value
