"""`fastbert demo`: what the swap gives on a real checkpoint, and what a checkpoint pre-trained with fastbert predicts.

One batch of mean-pooled, normalised sentence embeddings, by transformers and by fastbert in turn on this machine.
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
from fastbert.model.construction import transformers_classes
from fastbert.utils.checkpoints import open_checkpoint, packaged_checkpoint
from fastbert.utils.printing import number_of
from fastbert.utils.sample_text import MASKED, read_texts
from fastbert.utils.timing import Call, Timing, interleaved, largest_spread, steadiest

EQUAL_TO = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # of unit vectors: rounding of the dtype
NEIGHBOURS_SHOWN = 6
# A machine that is busy with something else gives any ratio: it is measured again, but nobody waits for an idle one.
ALLOWED_SPREAD = 0.2
TRIES, SECONDS = 4, 60.0


def run_demo(checkpoint: str | None, text: Path | None, rounds: int, console: Console) -> bool:
    """Prints the demonstration; returns whether both embeddings are equal up to rounding."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    source = open_checkpoint(packaged_checkpoint() if checkpoint is None else checkpoint)
    tokenizer = source.require_tokenizer()
    texts = read_texts(text)
    with transformers_classes():
        original = source.load(transformers, "BertModel", dtype=dtype).to(device)
    swapped = source.load(fastbert, "BertModel", dtype=dtype).to(device)
    limit = min(source.config.max_position_embeddings, getattr(tokenizer, "model_max_length", 512))
    batch = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt").to(device)

    fill = batch["attention_mask"].float().mean().item()
    real_tokens = int(batch["attention_mask"].sum())
    console.print(
        f"[bold]{Path(source.path).name if Path(source.path).is_dir() else source.path}[/]: "
        f"{number_of(source.config.num_hidden_layers, 'layer')}, hidden size "
        f"{source.config.hidden_size}, on {_device_name(device)} in "
        f"{str(dtype).removeprefix('torch.')}\n{number_of(len(texts), 'text')}, {number_of(real_tokens, 'token')}, "
        f"longest {batch['input_ids'].shape[1]}, fill rate {fill:.2f}"
    )
    vectors = embed(swapped, batch)
    _print_neighbours(texts, vectors, console)

    difference = (vectors - embed(original, batch)).abs().max().item()
    equal = difference <= EQUAL_TO[dtype]
    verdict = "[green]equal[/]" if equal else "[red]NOT equal[/]"
    console.print(
        f"Embeddings by fastbert and by transformers are {verdict}: largest difference {difference:.1e} "
        f"(allowed {EQUAL_TO[dtype]:.0e}, the rounding of the dtype)\n"
    )
    variants: dict[str, Call] = {"transformers": lambda: embed(original, batch), "fastbert": lambda: embed(swapped, batch)}
    timings = _time(variants, device, rounds, console)
    labels = {"transformers": f"transformers ({original.config._attn_implementation})", "fastbert": "fastbert"}
    _print_timings(timings, labels, rounds, real_tokens, console)
    console.print(fastbert.explain(swapped))
    _print_masked_words(console)
    return equal


def embed(model: transformers.PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Unit vectors (batch_size, hidden_size) in float32: the mean of the last hidden state over real tokens."""
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state.float()  # (batch_size, seqlen, hidden_size)
    keep = batch["attention_mask"][..., None].to(hidden)  # (batch_size, seqlen, 1)
    return F.normalize((hidden * keep).sum(1) / keep.sum(1).clamp(min=1), dim=-1)


def _time(variants: dict[str, Call], device: torch.device, rounds: int, console: Console) -> dict[str, Timing]:
    return steadiest(
        lambda: interleaved(variants, device, rounds=rounds),
        allowed_spread=ALLOWED_SPREAD,
        tries=TRIES,
        seconds=SECONDS,
        on_noise=lambda spread: console.print(f"The machine is noisy (spread ±{spread:.0%}): measuring again ..."),
    )


def _print_timings(timings: dict[str, Timing], labels: dict[str, str], rounds: int, real_tokens: int, console: Console) -> None:
    table = Table(title=f"One batch, {number_of(rounds, 'round')} in turn, {number_of(torch.get_num_threads(), 'CPU thread')}")
    for name in ("", "median ms", "spread", "real tokens/s", "ratio"):
        table.add_column(name, justify="left" if not name else "right")
    baseline = timings["transformers"].median
    for name, timing in timings.items():
        rate, ratio = real_tokens / timing.median, baseline / timing.median
        table.add_row(labels[name], f"{timing.median * 1e3:.1f}", f"±{timing.spread:.0%}", f"{rate:,.0f}", f"{ratio:.2f}x")
    console.print(table)
    if (spread := largest_spread(timings)) > ALLOWED_SPREAD:
        console.print(
            f"[yellow]The machine was too noisy for these figures: spread ±{spread:.0%} at best, above {ALLOWED_SPREAD:.0%}. "
            "They say little until nothing else runs.[/]"
        )


def _print_masked_words(console: Console) -> None:
    """The likeliest words by the checkpoint in this package, which `fastbert pretrain` trained."""
    table = Table(title="Masked words, by the small checkpoint pre-trained with fastbert", expand=True)
    table.add_column("text", ratio=3)
    table.add_column("likeliest, with probability", ratio=2)
    for text, masks in zip(MASKED, fastbert.fill_mask(MASKED, top=4)):
        table.add_row(Text(text), ", ".join(f"{fill['token_str']} {fill['score']:.2f}" for fill in masks[0]))
    console.print(table)


def _print_neighbours(texts: list[str], vectors: Tensor, console: Console) -> None:
    similarity = vectors @ vectors.T  # (texts, texts)
    similarity.fill_diagonal_(-1.0)
    best, nearest = similarity.max(1)
    table = Table(title="Nearest neighbours", expand=True)
    table.add_column("text", ratio=1, no_wrap=True)
    table.add_column("nearest", ratio=1, no_wrap=True)
    table.add_column("cosine", min_width=6, justify="right")
    for row in best.argsort(descending=True)[:NEIGHBOURS_SHOWN].tolist():
        table.add_row(texts[row], texts[nearest[row]], f"{best[row]:.3f}")
    console.print(table)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
