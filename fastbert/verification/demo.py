"""The swap shown on a real checkpoint: same embeddings, how much faster, what ran; then masked words by one of our own.

Mean-pooled, normalised sentence embeddings of one batch, by transformers and by fastbert, interleaved on this machine.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

import fastbert
from fastbert.utils.checkpoints import open_checkpoint, packaged_checkpoint, read_texts
from fastbert.utils.sample_text import MASKED
from fastbert.utils.timing import interleaved

EQUAL_TO = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # of unit vectors: rounding of the dtype
SHOWN = 6


def embed(model: transformers.PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Unit vectors (batch_size, hidden_size) in float32: the mean of the last hidden state over real tokens."""
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state.float()
    keep = batch["attention_mask"][..., None].to(hidden)
    return F.normalize((hidden * keep).sum(1) / keep.sum(1).clamp(min=1), dim=-1)


def run_demo(checkpoint: str | None, text: Path | None, rounds: int, console: Console) -> bool:
    """Prints the demonstration; returns whether the two embeddings are equal to rounding."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    source = open_checkpoint(packaged_checkpoint() if checkpoint is None else checkpoint)
    tokenizer = source.require_tokenizer()
    texts = read_texts(text)
    theirs = source.load(transformers, "BertModel", dtype=dtype).to(device)
    ours = source.load(fastbert, "BertModel", dtype=dtype).to(device)
    limit = min(source.config.max_position_embeddings, getattr(tokenizer, "model_max_length", 512))
    batch = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt").to(device)

    fill = batch["attention_mask"].float().mean().item()
    real_tokens = int(batch["attention_mask"].sum())
    console.print(
        f"[bold]{Path(source.path).name if Path(source.path).is_dir() else source.path}[/]: "
        f"{source.config.num_hidden_layers} layers, hidden size {source.config.hidden_size}, on {_device_name(device)} in "
        f"{str(dtype).removeprefix('torch.')}\n{len(texts)} texts, {real_tokens} tokens, "
        f"longest {batch['input_ids'].shape[1]}, fill rate {fill:.2f}"
    )
    vectors = embed(ours, batch)
    _print_neighbours(texts, vectors, console)

    difference = (vectors - embed(theirs, batch)).abs().max().item()
    equal = difference <= EQUAL_TO[dtype]
    verdict = "[green]equal[/]" if equal else "[red]NOT equal[/]"
    console.print(
        f"Embeddings by fastbert and by transformers are {verdict}: largest difference {difference:.1e} "
        f"(allowed {EQUAL_TO[dtype]:.0e}, the rounding of the dtype)\n"
    )
    timings = interleaved({"transformers": lambda: embed(theirs, batch), "fastbert": lambda: embed(ours, batch)},
                          device, rounds=rounds)  # fmt: skip
    table = Table(title=f"One batch, {rounds} rounds in turn, {torch.get_num_threads()} CPU threads")
    for name in ("", "median ms", "spread", "real tokens/s", "ratio"):
        table.add_column(name, justify="left" if not name else "right")
    baseline = timings["transformers"].median
    labels = {"transformers": f"transformers ({theirs.config._attn_implementation})", "fastbert": "fastbert"}
    for name, timing in timings.items():
        table.add_row(
            labels[name], f"{timing.median * 1e3:.1f}", f"±{timing.spread:.0%}", f"{real_tokens / timing.median:,.0f}",
            f"{baseline / timing.median:.2f}x",
        )  # fmt: skip
    console.print(table)
    console.print(fastbert.explain(ours))
    _print_masked_words(console)
    return equal


def _print_masked_words(console: Console) -> None:
    """What the checkpoint of this package, pre-trained by `fastbert pretrain`, puts in the place of a word."""
    table = Table(title="Masked words, by the small checkpoint pre-trained with fastbert", expand=True)
    table.add_column("text", ratio=3)
    table.add_column("likeliest, with probability", ratio=2)
    for text, masks in zip(MASKED, fastbert.fill_mask(MASKED, top=4)):
        table.add_row(Text(text), ", ".join(f"{fill['token_str']} {fill['score']:.2f}" for fill in masks[0]))
    console.print(table)


def _print_neighbours(texts: list[str], vectors: Tensor, console: Console) -> None:
    similarity = vectors @ vectors.T
    similarity.fill_diagonal_(-1.0)
    best, nearest = similarity.max(1)
    table = Table(title="Nearest neighbours", expand=True)
    table.add_column("text", ratio=1, no_wrap=True)
    table.add_column("nearest", ratio=1, no_wrap=True)
    table.add_column("cosine", min_width=6, justify="right")
    for row in best.argsort(descending=True)[:SHOWN].tolist():
        table.add_row(texts[row], texts[nearest[row]], f"{best[row]:.3f}")
    console.print(table)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
