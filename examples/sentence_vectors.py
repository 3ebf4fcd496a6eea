"""A SentenceTransformer on packed tokens: switched in place, then trained with sentence-transformers' own trainer.

python examples/sentence_vectors.py --out my-encoder
"""

from pathlib import Path
from typing import Annotated

import typer
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

import fastbert
from fastbert.utils.checkpoints import small_checkpoint
from fastbert.utils.sample_text import SENTENCES


def main(
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    model: Annotated[str, typer.Option(help="A BERT checkpoint, or a folder of sentence-transformers.")] = small_checkpoint(),
    epochs: int = 4,
) -> None:
    """Train on pairs that mean nearly the same, and save what sentence-transformers and fastbert.embed load."""
    encoder = fastbert.accelerate(SentenceTransformer(model))  # of a bare BERT: the mean of its tokens
    pairs = Dataset.from_dict({"anchor": SENTENCES[::2], "positive": SENTENCES[1::2]})
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(out / "checkpoints"),
        num_train_epochs=epochs,
        per_device_train_batch_size=8,
        learning_rate=2e-4,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    loss = MultipleNegativesRankingLoss(encoder)
    print(f"pairs alike before: {likeness(encoder):.3f}")
    SentenceTransformerTrainer(encoder, arguments, train_dataset=pairs, loss=loss).train()
    print(f"pairs alike after: {likeness(encoder):.3f}")
    encoder.save(str(out))
    print(f"saved in {out}; fastbert.embed gives the same vectors: {fastbert.embed('Rain again.', out)[:3]}")


def likeness(encoder: SentenceTransformer) -> float:
    """How much closer the sentences of a pair are than any two, in cosine."""
    first, second = encoder.encode(SENTENCES[::2]), encoder.encode(SENTENCES[1::2])
    found = encoder.similarity(first, second)
    return float(found.diagonal().mean() - found.mean())


if __name__ == "__main__":
    typer.run(main)
