"""Whether a tokenizer belongs to the weights: where a folder has none, transformers builds one that knows no word."""

from pathlib import Path
from typing import Any

import transformers

from fastbert.utils.printing import number_of

from .errors import in_one_line

FILES = ("tokenizer.json", "vocab.txt")
# Special tokens of which a configuration has no default: one that names their id does so on purpose.
ROLES = ("unk", "cls", "sep", "mask")
SHORTEST = 3  # [CLS], a token, [SEP]


def read_tokenizer(path: str, config: transformers.BertConfig) -> tuple[Any | None, str | None]:
    """(the tokenizer of a checkpoint, None), or (None, what is wrong with the one that is there; None where there is none)."""
    try:
        found = transformers.AutoTokenizer.from_pretrained(path, config=config)
    except Exception as error:  # `tokenizers` raises nothing more specific for a damaged file
        return None, f"one that cannot be read ({in_one_line(error)})" if _has_files(path) else None
    wrong = misfit(found, config)
    if wrong is None:
        return found, None
    return None, wrong if _has_files(path) else None


def _has_files(path: str) -> bool:
    return not Path(path).is_dir() or any((Path(path) / name).is_file() for name in FILES)


def misfit(tokenizer: Any, config: transformers.BertConfig) -> str | None:
    """What shows that the tokenizer is not that of the weights, as words to follow "got"; None where nothing does.

    The embedding may have more rows than the tokenizer has entries: many are padded to a round size.
    """
    vocabulary = tokenizer.get_vocab()
    special = set(tokenizer.all_special_tokens)
    if not vocabulary.keys() - special:
        return "one of special tokens alone, to which every word is unknown"
    last = max(vocabulary.values())
    if last >= config.vocab_size:
        return (
            f"one of {number_of(len(vocabulary), 'entry', 'entries')}, ids to {last}, for a vocab_size of {config.vocab_size}"
        )
    limit = tokenizer.model_max_length
    if not isinstance(limit, int | float) or limit < SHORTEST:
        return f"one whose model_max_length is {limit!r}, which leaves no room for a text"
    for role in ROLES:
        expected, found = getattr(config, f"{role}_token_id", None), getattr(tokenizer, f"{role}_token_id", None)
        if isinstance(expected, int) and found is not None and found != expected:
            return f"one whose {role}_token_id is {found}, not {expected} as {role}_token_id in config.json"
    # Another padding id works, unless the padding row of the embedding, which is never trained, is that of a word.
    pad = config.pad_token_id
    if pad is not None and pad != tokenizer.pad_token_id:
        word = next((token for token, number in vocabulary.items() if number == pad), None)
        if word and word not in special and not (word[0] in "[<" and word[-1] in "]>"):
            return f"one whose entry {pad}, pad_token_id in config.json, is the word {word!r}"
    return None


def advice(name: str, got: str | None) -> str:
    """The error message for a checkpoint without the tokenizer that belongs to it. got: as `misfit` says it."""
    return (
        f"expected the tokenizer that {name} was trained with, got {got or 'none'}: "
        f"put its files, {' or '.join(FILES)} and tokenizer_config.json, beside the weights"
    )
