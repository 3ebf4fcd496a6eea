"""Fine-tuning with transformers' Trainer: the import is all that changes.

python examples/trainer.py --out my-model
"""

from pathlib import Path
from typing import Annotated

import typer
from datasets import Dataset
from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

from fastbert import BertForSequenceClassification  # instead of: from transformers import BertForSequenceClassification
from fastbert.utils.checkpoints import small_checkpoint

GOOD = ("a fine day and a warm room", "she was glad of the good news", "we laughed for joy", "a kind and happy man")
BAD = ("a cold and bitter night", "he was angry at the sad news", "we wept for grief", "a cruel and wicked man")


def main(
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    model: Annotated[str, typer.Option(help="A BERT checkpoint.")] = small_checkpoint(),
    epochs: int = 10,
) -> None:
    """Train on eight sentences and save a classifier that transformers loads."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = Dataset.from_dict({"text": [*GOOD, *BAD], "label": [1] * len(GOOD) + [0] * len(BAD)})
    rows = texts.map(lambda row: tokenizer(row["text"], truncation=True), remove_columns="text")
    classifier = BertForSequenceClassification.from_pretrained(
        model, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1}
    )
    arguments = TrainingArguments(
        output_dir=str(out / "checkpoints"),
        num_train_epochs=epochs,
        per_device_train_batch_size=4,
        learning_rate=3e-4,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=2,
    )
    collate = DataCollatorWithPadding(tokenizer)  # pads, as ever; fastbert takes the padding out again
    trainer = Trainer(classifier, arguments, data_collator=collate, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(out))
    right = (trainer.predict(rows).predictions.argmax(-1) == rows["label"]).mean()
    print(f"{right:.0%} of the training sentences are right; saved in {out}")


if __name__ == "__main__":
    typer.run(main)
