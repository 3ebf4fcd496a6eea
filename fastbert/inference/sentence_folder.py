"""A folder that sentence-transformers saved: its prompts, limits and modules, read from its settings."""

from dataclasses import dataclass, field
from typing import Any

from fastbert.utils.errors import InputError
from fastbert.utils.folders import MODULES, read_json, relative

from .sentence_settings import (
    CROSS_ENCODER_KEYS,
    KEYWORDS,
    MODEL_KEYS,
    MODULE_KEYS,
    TRANSFORMER_CONFIGS,
    TRANSFORMER_KEYS,
    read_settings,
    require_known,
    require_size,
    require_type,
    require_value,
)

ENCODER, CROSS_ENCODER = "SentenceTransformer", "CrossEncoder"
MODEL_CONFIG = "config_sentence_transformers.json"
OLD_ACTIVATION = "sbert_ce_default_activation_function"
PACKAGE = "sentence_transformers."
# (task, output of the model, feature it becomes) of the Transformer module, by kind of folder.
TASKS = {
    ENCODER: ("feature-extraction", "last_hidden_state", "token_embeddings"),
    CROSS_ENCODER: ("sequence-classification", "logits", "scores"),
}
HINTS = {CROSS_ENCODER: "classify scores its pairs", ENCODER: "embed makes its vectors"}


@dataclass(frozen=True)
class Module:
    """A module after the encoder. kind: its class' name. folder: of its files, in the checkpoint. settings: its config.json."""

    kind: str
    folder: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class SentenceFolder:
    """The settings of a folder that sentence-transformers saved.

    path: folder or hub name. modules: after the Transformer, in order. limit: most tokens, None for the tokenizer's.
    activation: what turns a CrossEncoder's logits into scores, or the dotted name of its class; None where it is not set.
    """

    path: str
    modules: tuple[Module, ...] = ()
    lower_case: bool = False
    limit: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    truncate_dim: int | None = None
    activation: Any = None

    def prepare(self, tokenizer: Any) -> None:
        """Applies the folder's settings to the tokenizer, in place. Raises InputError where that is not possible."""
        if self.limit is not None:
            tokenizer.model_max_length = self.limit
        if self.lower_case:
            lower_case(tokenizer, self.path)

    def prompt(self, text: str | None = None, name: str | None = None) -> str:
        """The prompt before each text: the given text, that of the name, or the folder's default; "" for none.

        Raises InputError for both a text and a name, or an unknown name.
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


def lower_case(tokenizer: Any, path: str) -> None:
    """Makes the tokenizer lower-case every text first, in place, like do_lower_case of sentence-transformers."""
    from tokenizers.normalizers import Lowercase, Sequence

    if not getattr(tokenizer, "is_fast", False):
        kind = type(tokenizer).__name__
        raise InputError(f"expected a fast tokenizer, one with a tokenizer.json, for do_lower_case in {path}, got {kind}")
    before = tokenizer.backend_tokenizer.normalizer
    steps: list[Any] = [before] if before is not None else []
    if isinstance(before, Sequence):
        chain: Any = before  # iterable, though its stub does not say so
        steps = list(chain)
    if not any(isinstance(step, Lowercase) for step in steps):
        tokenizer.backend_tokenizer.normalizer = Sequence([Lowercase(), *steps])


def read_sentence_folder(path: str, wanted: str) -> SentenceFolder | None:
    """The settings of a folder; None where sentence-transformers did not save it, that is without a modules.json.

    path: a folder or a hub name. wanted: ENCODER or CROSS_ENCODER. Raises InputError for a folder of another kind, and for
    modules, settings and values that are not supported.
    """
    listed = read_json(path, MODULES)
    if listed is None:
        return None
    model = read_json(path, MODEL_CONFIG) or {}
    kind = model.get("model_type", ENCODER) if isinstance(model, dict) else ENCODER
    if kind != wanted:
        hint = f": {HINTS[kind]}" if isinstance(kind, str) and kind in HINTS else ""
        raise InputError(f"expected a {wanted} of sentence-transformers in {path}, got a {kind}{hint}")
    require_known(path, MODEL_CONFIG, model, (*MODEL_KEYS, *CROSS_ENCODER_KEYS) if wanted == CROSS_ENCODER else MODEL_KEYS)
    require_value(path, MODEL_CONFIG, model, "keep_in_fp32_modules", None, [])
    if not isinstance(listed, list) or not listed:
        raise InputError(f"expected a list of modules in {MODULES} of {path}, got {listed!r}")
    first, *others = (_module(path, one) for one in listed)
    kinds = [first.kind, *(one.kind for one in others)]
    if [kind == "Transformer" for kind in kinds] != [True] + [False] * len(others):
        raise InputError(f"expected one module Transformer, and first, in {MODULES} of {path}, got {', '.join(kinds)}")
    if wanted == CROSS_ENCODER and others:
        raise InputError(f"expected no module after the Transformer in {MODULES} of {path}, got {others[0].kind}")
    transformer = _transformer(path, first.folder, wanted)
    prompts = model.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise InputError(f"expected prompts by name in {MODEL_CONFIG} of {path}, got {prompts!r}")
    for name, text in prompts.items():
        require_type(path, MODEL_CONFIG, f"prompts.{name}", text, str)
    return SentenceFolder(
        path,
        tuple(others),
        *transformer,
        prompts={name: text or "" for name, text in prompts.items()},
        default_prompt_name=require_type(path, MODEL_CONFIG, "default_prompt_name", model.get("default_prompt_name"), str),
        truncate_dim=require_size(path, MODEL_CONFIG, "truncate_dim", model.get("truncate_dim")),
        activation=require_type(path, MODEL_CONFIG, "activation_fn", model.get("activation_fn"), str),
    )


def config_activation(config: Any, path: str) -> str | None:
    """The activation that versions before 5.4 saved in the configuration of a CrossEncoder; None where there is none.

    config: of transformers. Raises InputError for values that those versions do not write.
    """
    saved = getattr(config, "sentence_transformers", None)
    if saved is None:
        return require_type(path, "config.json", OLD_ACTIVATION, getattr(config, OLD_ACTIVATION, None), str)
    require_known(path, "config.json", saved, ("activation_fn", "version"), "sentence_transformers.")
    return require_type(path, "config.json", "sentence_transformers.activation_fn", saved.get("activation_fn"), str)


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
    return Module(name, folder, read_settings(path, f"{folder}/config.json" if folder else "", MODULE_KEYS[name]))


def _transformer(path: str, folder: str, kind: str) -> tuple[bool, int | None]:
    """(do_lower_case, most tokens) of the Transformer module."""
    prefix = f"{folder}/" if folder else ""
    files = (f"{prefix}{name}" for name in TRANSFORMER_CONFIGS)
    file = next((name for name in files if read_json(path, name)), f"{prefix}{TRANSFORMER_CONFIGS[0]}")
    found = read_settings(path, file, TRANSFORMER_KEYS)
    task, output, feature = TASKS[kind]
    require_value(path, file, found, "transformer_task", task)
    require_value(path, file, found, "module_output_name", feature)
    for name in ("query_length", "document_length", "query_expansion", "tokenizer_name_or_path"):
        require_value(path, file, found, name, None)
    modalities = found.get("modality_config")
    if modalities is not None and not _is_text(modalities, output):
        wanted = f"a modality_config of text alone, by forward and its {output},"
        raise InputError(f"expected {wanted} in {file} of {path}, got {modalities!r}")
    limit = require_size(path, file, "max_seq_length", found.get("max_seq_length"))
    for names, known in KEYWORDS.items():
        for name in names:
            values = found.get(name) or {}
            require_known(path, file, values, known, f"{name}.")
            limit = require_size(path, file, f"{name}.model_max_length", values.get("model_max_length")) or limit
    calls = found.get("processing_kwargs") or {}
    require_known(path, file, calls, ("text",), "processing_kwargs.")
    of_text = calls.get("text") or {}
    require_known(path, file, of_text, ("max_length", "padding", "truncation"), "processing_kwargs.text.")
    require_value(path, file, of_text, "truncation", True, "longest_first")
    limit = require_size(path, file, "processing_kwargs.text.max_length", of_text.get("max_length")) or limit
    return bool(require_type(path, file, "do_lower_case", found.get("do_lower_case"), bool)), limit


def _is_text(modalities: Any, output: str) -> bool:
    text = {"method": "forward", "method_output_name": output}
    return modalities in ({"text": text}, {"text": text | {"method_output_name": [output]}})
