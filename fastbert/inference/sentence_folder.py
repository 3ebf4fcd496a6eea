"""What a folder saved by sentence-transformers says of itself, as its versions up to 6 spell it.

Every setting is followed or refused by name; one that changes no vector is known and passed over.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from fastbert.utils.errors import InputError
from fastbert.utils.folders import MODULES, read_json, relative

ENCODER, CROSS_ENCODER = "SentenceTransformer", "CrossEncoder"
MODEL_CONFIG = "config_sentence_transformers.json"
OLD_ACTIVATION = "sbert_ce_default_activation_function"
PACKAGE = "sentence_transformers."
# Of the Transformer module; sentence-transformers reads the first that is there, whatever the model.
TRANSFORMER_CONFIGS = tuple(
    f"sentence_{name}_config.json" for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
MODEL_KEYS = (
    "__version__", "model_type", "prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim", "requirements",
)  # fmt: skip
CROSS_ENCODER_KEYS = ("activation_fn", "keep_in_fp32_modules")
# Keyword arguments of the module's model, tokenizer and configuration, by their old and new names; and those of each that
# change no vector, or are followed.
KEYWORDS = {
    ("model_args", "model_kwargs"): ("attn_implementation", "dtype", "torch_dtype", "add_pooling_layer", "trust_remote_code"),
    ("tokenizer_args", "processor_kwargs"): ("model_max_length", "padding_side", "use_fast", "trust_remote_code"),
    ("config_args", "config_kwargs"): ("trust_remote_code",),
}
TRANSFORMER_KEYS = (
    "max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name", "processing_kwargs",
    "unpad_inputs", "query_length", "document_length", "query_expansion", "tokenizer_name_or_path",
    *(name for names in KEYWORDS for name in names),
)  # fmt: skip
# Settings of each module that can be followed.
MODULE_KEYS = {
    "Pooling": (
        "embedding_dimension", "word_embedding_dimension", "pooling_mode", "include_prompt", "pooling_mode_cls_token",
        "pooling_mode_max_tokens", "pooling_mode_mean_tokens", "pooling_mode_mean_sqrt_len_tokens",
        "pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken",
    ),
    "Dense": (
        "in_features", "out_features", "bias", "activation_function", "module_input_name", "module_output_name", "use_residual",
    ),
    "Normalize": ("module_input_name", "module_output_name"),
    "LayerNorm": ("dimension",),
    "Dropout": ("dropout",),
}  # fmt: skip
# (task, output of the model, feature it becomes) of the Transformer module of each kind.
TASKS = {
    ENCODER: ("feature-extraction", "last_hidden_state", "token_embeddings"),
    CROSS_ENCODER: ("sequence-classification", "logits", "scores"),
}
HINTS = {CROSS_ENCODER: "classify scores its pairs", ENCODER: "embed makes its vectors"}


@dataclass(frozen=True)
class Module:
    """One step behind the encoder. kind: its class. folder: of its files, within the checkpoint. settings: its config.json."""

    kind: str
    folder: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class SentenceFolder:
    """path: folder or hub name. modules: behind the Transformer, in order. limit: most tokens, None for the tokenizer's.

    activation: dotted name of the class that turns logits into scores, of a CrossEncoder; None where nothing is said.
    """

    path: str
    modules: tuple[Module, ...] = ()
    lower_case: bool = False
    limit: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    truncate_dim: int | None = None
    activation: str | None = None

    def prepare(self, tokenizer: Any) -> None:
        """Sets what the folder says of the tokenizer, in place. Raises InputError where it cannot be set."""
        if self.limit is not None:
            tokenizer.model_max_length = self.limit
        if self.lower_case:
            lower(tokenizer, self.path)

    def prompt(self, text: str | None = None, name: str | None = None) -> str:
        """What stands before each text: the text given, that of the name, or the default of the folder; "" for nothing.

        Raises InputError for both or a name that the folder has not.
        """
        if text is not None and name is not None:
            raise InputError(f"expected a prompt or the name of one, got both: {text!r} and {name!r}")
        if text is not None:
            return text
        name = self.default_prompt_name if name is None else name
        if name is None:
            return ""
        if name not in self.prompts:
            known = ", ".join(map(repr, self.prompts)) or "none"
            raise InputError(f"expected the name of a prompt of {self.path}, which are {known}, got {name!r}")
        return self.prompts[name]


def lower(tokenizer: Any, path: str) -> None:
    """Lower-cases every text before all else that the tokenizer does, as sentence-transformers' do_lower_case, in place."""
    from tokenizers.normalizers import Lowercase, Sequence

    if not getattr(tokenizer, "is_fast", False):
        kind = type(tokenizer).__name__
        raise InputError(f"expected a fast tokenizer, one with a tokenizer.json, for do_lower_case in {path}, got {kind}")
    before = tokenizer.backend_tokenizer.normalizer
    steps: list[Any] = [before] if before is not None else []
    if isinstance(before, Sequence):
        steps = list(before)  # type: ignore[call-overload]
    if not any(isinstance(step, Lowercase) for step in steps):
        tokenizer.backend_tokenizer.normalizer = Sequence([Lowercase(), *steps])


def read_sentence_folder(path: str, wanted: str) -> SentenceFolder | None:
    """None where the checkpoint was not saved by sentence-transformers, which is where modules.json is not there.

    path: a folder or a hub name. wanted: ENCODER or CROSS_ENCODER. Raises InputError for a folder of another kind, and for
    modules and settings that are not known, or have a value that cannot be followed.
    """
    listed = read_json(path, MODULES)
    if listed is None:
        return None
    model = read_json(path, MODEL_CONFIG) or {}
    kind = model.get("model_type", ENCODER) if isinstance(model, dict) else ENCODER
    if kind != wanted:
        hint = f": {HINTS[kind]}" if isinstance(kind, str) and kind in HINTS else ""
        raise InputError(f"expected a {wanted} of sentence-transformers in {path}, got a {kind}{hint}")
    _known(path, MODEL_CONFIG, model, (*MODEL_KEYS, *CROSS_ENCODER_KEYS) if wanted == CROSS_ENCODER else MODEL_KEYS)
    _refuse(path, MODEL_CONFIG, model, "keep_in_fp32_modules", None, [])
    if not isinstance(listed, list) or not listed:
        raise InputError(f"expected a list of modules in {MODULES} of {path}, got {listed!r}")
    first, *others = (_module(path, one) for one in listed)
    kinds = [first.kind, *(one.kind for one in others)]
    if [kind == "Transformer" for kind in kinds] != [True] + [False] * len(others):
        raise InputError(f"expected one module Transformer, and first, in {MODULES} of {path}, got {', '.join(kinds)}")
    if wanted == CROSS_ENCODER and others:
        raise InputError(f"expected no module behind the Transformer in {MODULES} of {path}, got {others[0].kind}")
    transformer = _transformer(path, first.folder, wanted)
    prompts = model.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise InputError(f"expected prompts by name in {MODEL_CONFIG} of {path}, got {prompts!r}")
    for name, text in prompts.items():
        _check(path, MODEL_CONFIG, f"prompts.{name}", text, str)
    return SentenceFolder(
        path,
        tuple(others),
        *transformer,
        prompts={name: text or "" for name, text in prompts.items()},
        default_prompt_name=_check(path, MODEL_CONFIG, "default_prompt_name", model.get("default_prompt_name"), str),
        truncate_dim=_size(path, MODEL_CONFIG, "truncate_dim", model.get("truncate_dim")),
        activation=_check(path, MODEL_CONFIG, "activation_fn", model.get("activation_fn"), str),
    )


def config_activation(config: Any, path: str) -> str | None:
    """The activation that versions before 5.4 wrote into the configuration of a CrossEncoder; None where they did not.

    config: of transformers. Raises InputError for what they do not write.
    """
    said = getattr(config, "sentence_transformers", None)
    if said is None:
        return _check(path, "config.json", OLD_ACTIVATION, getattr(config, OLD_ACTIVATION, None), str)
    _known(path, "config.json", said, ("activation_fn", "version"), "sentence_transformers.")
    return _check(path, "config.json", "sentence_transformers.activation_fn", said.get("activation_fn"), str)


def _module(path: str, listed: Any) -> Module:
    if not isinstance(listed, dict) or (unknown := sorted(listed.keys() - {"idx", "name", "path", "type", "kwargs"})):
        got = repr(listed) if not isinstance(listed, dict) else ", ".join(unknown)
        raise InputError(f"expected idx, name, path and type of each module in {MODULES} of {path}, got {got}")
    kind = str(listed.get("type"))
    folder = relative(path, listed.get("path", ""))
    name = kind.rpartition(".")[2]
    if not kind.startswith(PACKAGE):
        raise InputError(f"expected modules of sentence-transformers in {MODULES} of {path}, got {kind}")
    if name == "Transformer":
        return Module(name, folder, {})
    if name not in MODULE_KEYS:
        known = ", ".join(("Transformer", *MODULE_KEYS))
        raise InputError(f"expected modules among {known} in {MODULES} of {path}, got {name}")
    return Module(name, folder, _settings(path, f"{folder}/config.json" if folder else "", MODULE_KEYS[name]))


def _transformer(path: str, folder: str, kind: str) -> tuple[bool, int | None]:
    """(do_lower_case, most tokens) of the Transformer module."""
    prefix = f"{folder}/" if folder else ""
    files = (f"{prefix}{name}" for name in TRANSFORMER_CONFIGS)
    file = next((name for name in files if read_json(path, name)), f"{prefix}{TRANSFORMER_CONFIGS[0]}")
    found = _settings(path, file, TRANSFORMER_KEYS)
    task, output, feature = TASKS[kind]
    _refuse(path, file, found, "transformer_task", task)
    _refuse(path, file, found, "module_output_name", feature)
    for name in ("query_length", "document_length", "query_expansion", "tokenizer_name_or_path"):
        _refuse(path, file, found, name, None)
    modalities = found.get("modality_config")
    if modalities is not None and not _is_text(modalities, output):
        wanted = f"a modality_config of text alone, by forward and its {output},"
        raise InputError(f"expected {wanted} in {file} of {path}, got {modalities!r}")
    limit = _size(path, file, "max_seq_length", found.get("max_seq_length"))
    for names, known in KEYWORDS.items():
        for name in names:
            values = found.get(name) or {}
            _known(path, file, values, known, f"{name}.")
            limit = _size(path, file, f"{name}.model_max_length", values.get("model_max_length")) or limit
    calls = found.get("processing_kwargs") or {}
    _known(path, file, calls, ("text",), "processing_kwargs.")
    of_text = calls.get("text") or {}
    _known(path, file, of_text, ("max_length", "padding", "truncation"), "processing_kwargs.text.")
    _refuse(path, file, of_text, "truncation", True, "longest_first")
    limit = _size(path, file, "processing_kwargs.text.max_length", of_text.get("max_length")) or limit
    return bool(_check(path, file, "do_lower_case", found.get("do_lower_case"), bool)), limit


def _is_text(modalities: Any, output: str) -> bool:
    text = {"method": "forward", "method_output_name": output}
    return modalities in ({"text": text}, {"text": text | {"method_output_name": [output]}})


def _settings(path: str, file: str, known: Collection[str]) -> dict[str, Any]:
    """The content of a file; nothing where there is none. Raises InputError for settings that are not known."""
    content = read_json(path, file) if file else None
    if content is None:
        return {}
    _known(path, file, content, known)
    return content


def _known(path: str, file: str, content: Any, known: Collection[str], prefix: str = "") -> None:
    if not isinstance(content, dict):
        raise InputError(f"expected {prefix.rstrip('.') or 'settings'} by name in {file} of {path}, got {content!r}")
    unknown = sorted(content.keys() - set(known))
    if unknown:
        names = ", ".join(f"{prefix}{name}" for name in unknown)
        raise InputError(f"expected settings that fastbert knows in {file} of {path}, got {names}")


def _refuse(path: str, file: str, content: dict[str, Any], name: str, *wanted: Any) -> None:
    """Raises InputError for a setting with another value."""
    if name in content and content[name] not in wanted:
        raise InputError(f"expected {name} to be {wanted[0]!r} in {file} of {path}, got {content[name]!r}")


def _check(path: str, file: str, name: str, value: Any, kind: type) -> Any:
    """The value, which may be null. Raises InputError for another type."""
    if value is not None and not isinstance(value, kind):
        raise InputError(f"expected {name} of type {kind.__name__} in {file} of {path}, got {value!r}")
    return value


def _size(path: str, file: str, name: str, value: Any) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise InputError(f"expected {name} of at least 1 in {file} of {path}, got {value!r}")
    return value
