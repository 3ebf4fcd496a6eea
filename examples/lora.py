"""LoRA by PEFT: the encoder's weights stay, small matrices beside query and value learn; the encoder runs on packed tokens.

python examples/lora.py --out my-adapter
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import fastbert
from fastbert.utils.checkpoints import small_checkpoint

TEXTS = ["a fine day and a warm room", "she was glad", "a cold and bitter night, darker than any before", "he wept"]
LABELS = [1, 1, 0, 0]


def main(
    out: Annotated[Path, typer.Option(help="Folder for the adapter.")],
    model: Annotated[str, typer.Option(help="A BERT checkpoint.")] = small_checkpoint(),
    steps: int = 20,
) -> None:
    """Train an adapter on four sentences and save it as PEFT does."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(model)
    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)
    settings = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, target_modules=["query", "value"])
    adapted = fastbert.accelerate(get_peft_model(base, settings)).train()  # PEFT's model, in place
    print(fastbert.explain(adapted))  # says that LoRA's modules are called, and what is fused
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=3e-3)
    for step in range(steps):
        loss = adapted(**batch, labels=torch.tensor(LABELS)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step in (0, steps - 1):
            print(f"step {step + 1}: loss {loss.item():.3f}")
    adapted.save_pretrained(str(out))
    print(f"saved the adapter in {out}")


if __name__ == "__main__":
    typer.run(main)
