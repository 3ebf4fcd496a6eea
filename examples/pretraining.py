"""Raw text to a checkpoint that transformers loads: a vocabulary, pairs of sentences, masked words.

python examples/pretraining.py --text books.txt --out run
The three commands can as well be typed: fastbert tokenizer, fastbert prepare, fastbert pretrain.
"""

import json
from pathlib import Path
from typing import Annotated

import transformers
import typer

from fastbert.cli.app import app

SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}


def fastbert(*words: object) -> None:
    app([str(word) for word in words], standalone_mode=False)


def main(
    text: Annotated[Path, typer.Option(help="A sentence a line, a blank line between documents.")],
    out: Annotated[Path, typer.Option(help="Folder for the tokenizer, the data and the run.")],
    vocab_size: int = 8192,
    seq_len: int = 64,
    steps: int = 1000,
    step_tokens: int = 2048,
) -> None:
    """Pre-train a small BERT and say which checkpoint to load."""
    out.mkdir(parents=True, exist_ok=True)
    config = out / "config.json"
    config.write_text(json.dumps({**SMALL, "max_position_embeddings": seq_len}))
    fastbert("tokenizer", text, "--vocab-size", vocab_size, "--out", out / "tokenizer")
    fastbert("prepare", text, "--tokenizer", out / "tokenizer", "--seq-len", seq_len, "--out", out / "data", "--workers", 1)
    fastbert(
        *("pretrain", "--data", out / "data", "--steps", steps, "--config", config, "--out", out / "run"),
        *("--batch-tokens", step_tokens, "--micro-batch-tokens", step_tokens, "--learning-rate", 1e-3, "--workers", 0),
    )
    checkpoint = max((out / "run").glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
    model = transformers.BertForPreTraining.from_pretrained(checkpoint)  # transformers' own class
    print(f"{model.num_parameters():,} weights in {checkpoint}; try: fastbert fill-mask --model {checkpoint} 'A [MASK].'")


if __name__ == "__main__":
    typer.run(main)
