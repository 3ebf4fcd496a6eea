"""A checkpoint with random weights, small enough for every test, and a tokenizer with pieces."""

from pathlib import Path

import torch
import transformers

WORDS = (
    "the a cat dog man woman plays guitar with red ball in park and then sat down on mat who what where when is was did "
    "bank card lost my help please . , ? ! - long answer question"
).split()
PIECES = [*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"), "##ing"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LIMIT = 64


def save(folder: Path, class_name: str, **options) -> str:
    """A folder with a random model of transformers' class and the tokenizer. Returns its path."""
    vocabulary = list(dict.fromkeys(SPECIAL + WORDS + PIECES))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=LIMIT,
        initializer_range=0.3,
        **options,
    )
    torch.manual_seed(0)
    getattr(transformers, class_name)(config).save_pretrained(folder)
    return str(folder)
