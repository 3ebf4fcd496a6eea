"""A small prepared folder with its tokenizer, and the options of short runs on it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import transformers

from fastbert.data.shards import TOKENIZER, Meta, Sample, Shards, fingerprint, write_meta, write_shard

SEQ_LEN = 32
TINY = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=SEQ_LEN,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
)


def write_tokenizer(folder: Path, words: int) -> transformers.PreTrainedTokenizerBase:
    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(words))]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = transformers.BertTokenizer(vocab=str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def write_data(folder: Path, *, count: int = 300, words: int = 59, seed: int = 0) -> Path:
    """Samples in which the next token follows from the one before, so that there is something to learn."""
    tokenizer = write_tokenizer(folder / TOKENIZER, words)
    rng, samples = np.random.default_rng(seed), []
    for _ in range(count):
        length = int(rng.integers(8, SEQ_LEN + 1))
        ids = 5 + (rng.integers(words) + np.arange(length)) % words
        is_random = bool(rng.integers(2))
        half = length // 2
        if is_random:
            ids[half:] = 5 + (rng.integers(words) + 7 * np.arange(length - half)) % words
        ids[0], ids[half], ids[-1] = 2, 3, 3
        samples.append(Sample(ids, half + 1, is_random))
    tokens = write_shard(folder, 0, samples, len(tokenizer))
    audit = {"entropy": float(np.log(words))}
    write_meta(folder, Meta(SEQ_LEN, len(tokenizer), fingerprint(tokenizer), (count,), tokens, {}, audit))
    return folder


@dataclass(frozen=True)
class Prepared:
    data: Path
    held_out: Path
    config: Path

    @property
    def shards(self) -> Shards:
        return Shards(self.data)
