"""What batch-invariant mode costs: `python -m benchmarks.studies.invariance` times a ragged batch with and without it."""

from typing import Annotated

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table

import fastbert
from benchmarks.harness.conditions import cpu_name
from benchmarks.harness.lengths import draw, mixes
from fastbert.utils.sizes import SIZES
from fastbert.utils.timing import interleaved

MODELS = {
    "small": dict(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
    "base": SIZES["bert-base"],
}


def main(
    size: Annotated[str, typer.Option(help=f"Of {', '.join(MODELS)}.")] = "base",
    mix: Annotated[str, typer.Option(help="Of lengths; see benchmarks/harness/lengths.py.")] = "snli",
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed.")] = 7,
) -> None:
    """Print the median seconds of both and their ratio."""
    if size not in MODELS or mix not in mixes():
        raise typer.BadParameter(f"expected a size among {', '.join(MODELS)} and a mix among {', '.join(mixes())}")
    on_gpu = torch.cuda.is_available()
    device, dtype = (torch.device("cuda"), torch.bfloat16) if on_gpu else (torch.device("cpu"), torch.float32)
    model = fastbert.BertModel(transformers.BertConfig(**MODELS[size])).eval().to(device, dtype)
    lengths = draw(mix, batch_size, 512)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long().to(device)
    ids = torch.randint(5, 30522, mask.shape, device=device)

    def usual() -> None:
        with torch.inference_mode():
            model(ids, attention_mask=mask)

    def invariant() -> None:
        with torch.inference_mode(), fastbert.batch_invariant():
            model(ids, attention_mask=mask)

    timings = interleaved({"as usual": usual, "batch-invariant": invariant}, device, rounds=rounds)
    name = torch.cuda.get_device_name() if on_gpu else f"{cpu_name()}, {torch.get_num_threads()} threads"
    table = Table(title=f"{size}, {batch_size} sequences of {mix}, {sum(lengths):,} tokens, {dtype}; {name}")
    for column in ("", "median ms", "spread", "time"):
        table.add_column(column, justify="right" if column else "left")
    for label, timing in timings.items():
        ratio = timing.median / timings["as usual"].median
        table.add_row(label, f"{timing.median * 1e3:.1f}", f"±{timing.spread:.0%}", f"{ratio:.2f}x")
    Console(width=120, highlight=False).print(table)


if __name__ == "__main__":
    typer.run(main)
