"""From a name to the folder of a BERT model and its configuration; or in one line why there is none.

transformers is imported where it is needed, so that what a folder alone shows to be wrong is said without loading torch.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .configurations import check_values
from .errors import InputError, in_one_line

if TYPE_CHECKING:
    from transformers import BertConfig

CONFIG, MODULES = "config.json", "modules.json"
WEIGHTS = ("*.safetensors", "*.bin")
SHOWN_FILES = 3
SIZES = {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "type_vocab_size"}
EXPECTED = "a folder or a hub name of a BERT checkpoint"
_RUN = re.compile(r"checkpoint-(\d+)")


@contextmanager
def reading(what: str, path: str) -> Iterator[None]:
    """Turns what transformers, safetensors and torch raise about a missing or damaged file into an InputError of one line.

    what: was expected in `path`.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not Path(path).is_dir():
            raise InputError(f"expected {EXPECTED}, got {path}, no folder here; the hub: {in_one_line(error)}") from error
        raise InputError(f"expected {what} in {path}, got: {in_one_line(error)}") from error


def is_path(name: str) -> bool:
    """Whether a name can be that of a folder only, and of nothing on the hub."""
    return Path(name).is_absolute() or name.startswith((".", "~")) or name.endswith("/") or name.count("/") > 1


def find_model(path: str) -> str:
    """The folder that holds config.json and the weights, or the hub name as it is.

    path: that folder, or one saved by sentence-transformers with the model in a folder inside, or a hub name. Raises
    InputError, which says what is there instead, for anything else.
    """
    folder = Path(path)
    if not path or folder.is_file():
        raise InputError(f"expected {EXPECTED}, got {'nothing' if not path else f'the file {path}'}")
    if not folder.is_dir():
        if is_path(path):
            raise InputError(f"expected {EXPECTED}, got {path}, which does not exist")
        return path
    if (folder / CONFIG).is_file():
        return path
    inside = transformer_path(path)
    if inside and (folder / inside / CONFIG).is_file():
        return str(folder / inside)
    if runs := _checkpoints(folder):
        raise InputError(f"expected a checkpoint, got {path}, which holds those of a run: use {runs[-1]}, the newest one there")
    names = sorted(one.name for one in folder.iterdir())
    if (folder / "adapter_config.json").is_file():
        got = "a PEFT adapter without its model: merge it with merge_and_unload() and save that"
    elif not names:
        got = "an empty folder"
    else:
        got = ", ".join(names[:SHOWN_FILES]) + (f" and {len(names) - SHOWN_FILES} more" if len(names) > SHOWN_FILES else "")
    raise InputError(f"expected {CONFIG} and weights of a BERT checkpoint in {path}, got {got}")


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in the folder of a training run, in the order of steps."""
    found = [(int(match[1]), one) for one in folder.iterdir() if (match := _RUN.fullmatch(one.name))]
    return [one for _, one in sorted(found) if (one / CONFIG).is_file()]


def transformer_path(path: str) -> str:
    """The folder of the model as modules.json of sentence-transformers names it; "" for the folder itself."""
    modules = read_json(path, MODULES)
    for module in modules if isinstance(modules, list) else ():
        if isinstance(module, dict) and str(module.get("type", "")).rpartition(".")[2] == "Transformer":
            return relative(path, module.get("path", ""))
    return ""


def relative(path: str, inside: Any) -> str:
    """The path of a module inside `path`, without a final slash. Raises InputError for one that leads out of the folder."""
    if not isinstance(inside, str) or Path(inside).is_absolute() or ".." in Path(inside).parts:
        raise InputError(f"expected the path of a folder inside {path} in its {MODULES}, got {inside!r}")
    return "" if Path(inside) == Path() else Path(inside).as_posix()


def read_json(path: str, file: str) -> Any | None:
    """The content of a file of a checkpoint, or None where there is none. Raises InputError where it is not JSON."""
    with reading(f"JSON in {file}", path):
        found = Path(path) / file
        if not Path(path).is_dir():
            cached = _from_hub(path, file)
            if cached is None:
                return None
            found = Path(cached)
        elif not found.is_file():
            return None
        return json.loads(found.read_text(encoding="utf-8"))


def _from_hub(name: str, file: str) -> str | None:
    from transformers.utils import cached_file

    return cached_file(name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False)


def check_folder(path: str, *, weights: bool = True) -> None:
    """What can be told of a checkpoint without loading a library, in milliseconds; a hub name passes.

    weights: whether they are needed. Raises InputError where `path` is no checkpoint of BERT, has no weights, or a
    configuration that no BERT can have.
    """
    path = find_model(path)
    if Path(path).is_dir():
        content = read_json(path, CONFIG)
        if not isinstance(content, dict):
            raise InputError(f"expected a JSON object in {CONFIG} in {path}, got {type(content).__name__}")
        _check_kind(content, path)
        _check_numbers(content, path)
        if weights:
            require_weights(path)


def read_config(path: str) -> "BertConfig":
    """The configuration in a folder of a model, or under a hub name.

    One without a model_type, which from_pretrained of a BERT class accepts, is read too, if it names BERT's classes or sizes.
    Raises InputError where it is of another model type, or cannot be read, or no BERT can have it.
    """
    from transformers import BertConfig

    if (Path(path) / CONFIG).is_file():
        check_folder(path, weights=False)
    with reading(f"a {CONFIG} that transformers can read", path):
        content, _ = BertConfig.get_config_dict(path)
        _check_kind(content, path)
        _check_numbers(content, path)
        return BertConfig.from_pretrained(path)


def _check_kind(content: dict[str, Any], path: str) -> None:
    kind, classes = content.get("model_type"), content.get("architectures") or []
    if kind is None and not (all(name.startswith("Bert") for name in classes) if classes else content.keys() >= SIZES):
        got = f"none, and architectures {', '.join(classes)}" if classes else "none, and not the sizes of one"
        raise InputError(f"expected a checkpoint of model type 'bert', got {got} in {path}")
    if kind not in (None, "bert"):
        raise InputError(f"expected a checkpoint of model type 'bert', got {kind!r} in {path}")


def _check_numbers(content: dict[str, Any], path: str) -> None:
    check_values(content, f"{CONFIG} in {path}", least_layers=0)


def require_weights(path: str) -> None:
    """Raises InputError where a folder has none."""
    folder = Path(path)
    if folder.is_dir() and not any(file for pattern in WEIGHTS for file in folder.glob(pattern)):
        raise InputError(f"expected weights, model.safetensors or pytorch_model.bin, in {path}, got neither")
