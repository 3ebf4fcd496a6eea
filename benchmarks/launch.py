"""What the host does for one call: `python -m benchmarks.launch` prints microseconds of every operation and of a layer.

Needs no GPU. Everything of a call runs as it would on an H100 (sm_90): argument checks, PyTorch's dispatcher, the launcher in
Python, Triton's own Python launcher, autograd's bookkeeping. Only the last step is left out: a kernel is neither compiled nor
started, and the driver is not called. The tensors are tiny and on the CPU; products that would go to the library on sm_90 do
so, which counts their dispatch with next to no arithmetic. At a small batch a GPU waits for exactly this. The clock is the
process's own, which does not run while other processes have its core.
"""

import cProfile
import os
import platform
import pstats
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Annotated

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

import fastbert
from fastbert.kernels import functional
from fastbert.kernels.matmul.choose import select_gemm

from .harness.conditions import cpu_name
from .harness.fake_driver import without_launches

HIDDEN, INNER, TOKENS = 64, 128, 8
WARM_UP = 2


def operations(dtype: torch.dtype, training: bool) -> dict[str, Callable[[], Tensor]]:
    """One call of each operation of a layer, as the model makes it."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype).requires_grad_(training)

    x, wide = draw(TOKENS, HIDDEN), draw(TOKENS, 3, 1, HIDDEN)
    square, bias, weight = draw(HIDDEN, HIDDEN), draw(HIDDEN), draw(HIDDEN)
    weight_in, bias_in, weight_out = draw(INNER, HIDDEN), draw(INNER), draw(HIDDEN, INNER)
    cu_seqlens = torch.tensor([0, TOKENS], dtype=torch.int32)
    schedule = functional.attention_schedule(cu_seqlens, TOKENS, TOKENS, wide)
    return {
        "qkv_linear": lambda: functional.qkv_linear(x, (square,) * 3, (bias,) * 3),
        "attention": lambda: functional.attention(wide, cu_seqlens, TOKENS, schedule=schedule),
        "linear": lambda: functional.linear(x, square),
        "layer_norm": lambda: functional.layer_norm(x, weight, bias, x, x_bias=bias),
        "feed_forward": lambda: functional.feed_forward(x, weight_in, bias_in, weight_out),
    }


def microseconds(call: Callable[[], object], rounds: int, calls: int) -> float:
    """The processor time of one call: the median over `rounds` blocks of `calls`, after WARM_UP blocks that do not count."""
    seconds = []
    for number in range(rounds + WARM_UP):
        begin = time.process_time()
        for _ in range(calls):
            call()
        if number >= WARM_UP:
            seconds.append((time.process_time() - begin) / calls)
    return statistics.median(seconds) * 1e6


def step(forward: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward and backward; gradients add up in the same tensors, as in all micro-batches of a step but the first."""
    dy = torch.ones_like(forward())

    def both() -> None:
        forward().backward(dy)

    return both


def encoder(layers: int, dtype: torch.dtype, training: bool) -> Callable[[], Tensor]:
    """A call of fastbert's encoder with this many layers of bert-base's structure, on a packed batch."""
    config = transformers.BertConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_attention_heads=1,
        num_hidden_layers=layers,
        vocab_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=TOKENS,
    )
    model = fastbert.BertModel(config, add_pooling_layer=False).to(dtype).train(training)
    ids, cu_seqlens = torch.arange(TOKENS), torch.tensor([0, TOKENS], dtype=torch.int32)
    return lambda: model(ids, cu_seqlens=cu_seqlens, max_seqlen=TOKENS).last_hidden_state


def per_layer(dtype: torch.dtype, training: bool, rounds: int, calls: int, started: list[str]) -> tuple[float, float]:
    """(microseconds, kernels started) of one more layer: the difference between twelve and two layers, over ten."""
    found = []
    for layers in (2, 12):
        forward = encoder(layers, dtype, training)
        call = step(forward) if training else forward
        call()
        started.clear()
        call()
        kernels = len(started)
        found.append((microseconds(call, rounds, calls), kernels))
    (few, few_kernels), (many, many_kernels) = found
    return (many - few) / 10, (many_kernels - few_kernels) / 10


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Blocks of calls, whose median counts.")] = 15,
    calls: Annotated[int, typer.Option(min=1, help="Calls in a block.")] = 50,
    profile: Annotated[bool, typer.Option("--profile", help="Print where the time of a layer goes.")] = False,
) -> None:
    """Print the host's microseconds for every operation and for a layer of bert-base, in inference and in training."""
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        raise typer.BadParameter("expected TRITON_INTERPRET unset: the interpreter has no launcher to measure")
    torch.set_num_threads(1)
    dtype = torch.bfloat16
    table = Table(title="host time of one call, microseconds; kernels started in brackets")
    for column in ("", "inference", "forward + backward"):
        table.add_column(column, justify="right" if column else "left")
    with without_launches() as started:
        inference, training = (_measure(dtype, is_training, rounds, calls, started) for is_training in (False, True))
        for name in inference:
            table.add_row(name, inference[name], training[name])
        table.add_row("selecting library or Triton", f"{_selection(rounds, calls):.2f}", "")
        if profile:
            _profile(dtype, calls)
    console = Console(width=120, highlight=False)
    console.print(f"{cpu_name()}, Python {platform.python_version()}, torch {torch.__version__}, triton {_triton()}, bf16")
    console.print(table)


def _measure(dtype: torch.dtype, training: bool, rounds: int, calls: int, started: list[str]) -> dict[str, str]:
    """'microseconds (kernels)' of every operation and of a layer."""
    cells = {}
    with nullcontext() if training else torch.inference_mode():
        for name, forward in operations(dtype, training).items():
            call = step(forward) if training else forward
            call()
            started.clear()
            call()
            kernels = len(started)
            cells[name] = f"{microseconds(call, rounds, calls):.0f} ({kernels})"
        time_of_layer, kernels_of_layer = per_layer(dtype, training, rounds, calls, started)
        cells["a layer"] = f"{time_of_layer:.0f} ({kernels_of_layer:.0f})"
    return cells


def _selection(rounds: int, calls: int) -> float:
    """Microseconds to decide who computes one product."""
    device = torch.device("cuda", 0)
    return microseconds(lambda: select_gemm("linear", 512, 768, 768, torch.bfloat16, device), rounds, calls)


def _profile(dtype: torch.dtype, calls: int) -> None:
    for training in (False, True):
        with nullcontext() if training else torch.inference_mode():
            forward = encoder(12, dtype, training)
            call = step(forward) if training else forward
            call()
            profiler = cProfile.Profile()
            with profiler:
                for _ in range(calls):
                    call()
        pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(45)


def _triton() -> str:
    import triton

    return triton.__version__


if __name__ == "__main__":
    typer.run(main)
