"""A BERT tokenizer, opened and checked for preparing text."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastbert.utils.errors import DataError
from fastbert.utils.folders import is_path

from .shards import fingerprint

FILES = ("tokenizer.json", "vocab.txt")


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of transformers and what preparing text needs of it.

    ids: of cls, sep, mask, pad, unk. pipeline: sha256 of everything that it does to a text. serialised: as JSON for the
    library `tokenizers`.
    """

    loaded: Any
    vocab_size: int
    ids: dict[str, int]
    special_ids: list[int]
    fingerprint: str
    pipeline: str
    serialised: str


def _check_name(name: str) -> None:
    """Raises DataError for what can be seen to be no tokenizer, before transformers is loaded."""
    folder, expected = Path(name), "expected a folder or hub name of a BERT tokenizer"
    if folder.is_file():
        raise DataError(f"{expected}, got the file {name}")
    if not folder.is_dir() and is_path(name):
        raise DataError(f"{expected}, got {name}, which does not exist")
    if folder.is_dir() and not any((folder / file).is_file() for file in FILES):
        raise DataError(f"{expected}, got {name}, which has neither {' nor '.join(FILES)}")


def open_tokenizer(name: str | Path, seq_len: int) -> Tokenizer:
    """Loads a tokenizer by folder or hub name.

    Raises DataError where there is none, or one that is slow, lacks one of BERT's special tokens, does not number its
    vocabulary without gaps, or is limited to fewer than `seq_len` tokens.
    """
    _check_name(str(name))
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(str(name))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"expected a folder or hub name of a BERT tokenizer, got {name}: {error}") from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise DataError(f"expected a tokenizer of the library `tokenizers`, got {type(loaded).__name__} in {name}")
    vocabulary = backend.get_vocab(with_added_tokens=False)
    ids = {}
    for role in ("cls", "sep", "mask", "pad", "unk"):
        token = getattr(loaded, f"{role}_token", None)
        # A token that the vocabulary lacks gets a new id at loading, to which no embedding belongs.
        if token is None or token not in vocabulary:
            raise DataError(f"expected a vocabulary with a token for {role}_token, got none for {token!r} in {name}")
        ids[role] = vocabulary[token]
    numbers = sorted(loaded.get_vocab().values())
    if numbers != list(range(len(numbers))):
        raise DataError(f"expected ids 0 to {len(numbers) - 1}, each once, got {numbers[0]} to {numbers[-1]} in {name}")
    if seq_len > loaded.model_max_length:
        raise DataError(f"expected a sequence length of at most {loaded.model_max_length} (the tokenizer's), got {seq_len}")
    copy = type(backend).from_str(backend.to_str())  # the tokenizer that is saved keeps its settings
    copy.no_truncation()
    copy.no_padding()
    serialised = copy.to_str()
    pipeline = hashlib.sha256(serialised.encode()).hexdigest()
    special_ids = sorted(set(loaded.all_special_ids))
    return Tokenizer(loaded, len(numbers), ids, special_ids, fingerprint(loaded), pipeline, serialised)
