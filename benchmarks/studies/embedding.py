"""Sentence embedding on this machine: fastbert.embed, sentence-transformers' encode, and transformers in input order.

`python -m benchmarks.studies.embedding FILE`, one sentence a line. The three take turns on the same model and sentences.
Processor seconds, over all threads, are printed too: on a CPU that is shared with other work they vary less.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import transformers
import typer
from rich.console import Console
from rich.table import Table

import fastbert
from benchmarks.harness.conditions import conditions
from fastbert.inference.embedding import embed
from fastbert.model.construction import transformers_classes
from fastbert.utils.checkpoints import packaged_checkpoint
from fastbert.utils.files import write_whole
from fastbert.utils.timing import interleaved

EQUAL_TO = 1e-4
WARM_UP = 512  # sentences


def in_input_order(model: transformers.PreTrainedModel, tokenizer, texts: list[str], limit: int, batch_size: int) -> np.ndarray:
    """transformers as it is commonly used: batches as the texts come, padded to the longest."""
    found = []
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        inputs = tokenizer(batch, padding=True, truncation=True, max_length=limit, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None].to(hidden)
        found.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).cpu().numpy())
    return np.concatenate(found)


def main(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="One sentence a line.")],
    sentences: Annotated[int, typer.Option(min=1, help="How many, from the first that is not blank.")] = 20000,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Of the two others; sentence-transformers' default is 32.")] = 32,
    out: Annotated[Path | None, typer.Option(help="Write the record to this file as JSON.")] = None,
) -> None:
    """Embed the same sentences in float32 with each, interleaved; no number where the vectors differ."""
    import sentence_transformers

    with file.open(encoding="utf-8") as lines:
        texts = [line.strip() for line in lines if line.strip()][:sentences]
    transformers.utils.logging.set_verbosity_error()  # loading without the pooler warns
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    path = packaged_checkpoint()
    with transformers_classes():
        encoder = sentence_transformers.SentenceTransformer(path, device=str(device))
        transformers_model = transformers.BertModel.from_pretrained(path, dtype=torch.float32).eval().to(device)
    fastbert_model = fastbert.BertModel.from_pretrained(path, add_pooling_layer=False, dtype=torch.float32).eval().to(device)
    limit = encoder.max_seq_length
    # The limit of a loaded pair is the tokenizer's, so that all three cut alike.
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, model_max_length=limit)
    vectors: dict[str, np.ndarray] = {}
    processor: dict[str, list[float]] = {}

    def keep(name, call):
        def run() -> None:
            begin = time.process_time()
            vectors[name] = call(texts)
            processor.setdefault(name, []).append(time.process_time() - begin)

        return run

    variants = {
        "sentence-transformers": lambda batch: encoder.encode(batch, batch_size=batch_size, show_progress_bar=False),
        "transformers, input order": lambda batch: in_input_order(transformers_model, tokenizer, batch, limit, batch_size),
        "fastbert.embed": lambda batch: embed(batch, (fastbert_model, tokenizer)),
    }
    for call in variants.values():
        call(texts[:WARM_UP])
    timings = interleaved({name: keep(name, call) for name, call in variants.items()}, device, rounds=rounds, warm_up=0)
    mine = vectors["fastbert.embed"]
    differences = {name: float(np.abs(found - mine).max()) for name, found in vectors.items()}
    if max(differences.values()) > EQUAL_TO:
        print(f"expected vectors equal to {EQUAL_TO}, got differences {differences}", file=sys.stderr)
        raise typer.Exit(1)
    table = Table(title=f"{len(texts):,} sentences of {file.name}, float32, {device.type}, {torch.get_num_threads()} threads")
    for name in ("", "median s", "spread", "sentences/s", "fastbert is", "processor s", "fastbert is", "difference"):
        table.add_column(name, justify="right" if name else "left")
    for name, timing in timings.items():
        ratio = timing.median / timings["fastbert.embed"].median
        busy = statistics.median(processor[name])
        table.add_row(
            name,
            f"{timing.median:.2f}",
            f"±{timing.spread:.0%}",
            f"{len(texts) / timing.median:,.0f}",
            f"{ratio:.2f}x",
            f"{busy:.2f}",
            f"{busy / statistics.median(processor['fastbert.embed']):.2f}x",
            f"{differences[name]:.0e}",
        )
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)
    if out is not None:
        seconds = {name: list(timing.seconds) for name, timing in timings.items()}
        record = {"sentences": len(texts), "file": file.name, "batch_size": batch_size, "seconds": seconds}
        record["processor_seconds"] = processor
        record |= {"differences": differences, "conditions": conditions()}
        write_whole(out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
