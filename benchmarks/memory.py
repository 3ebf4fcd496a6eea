"""Activation memory of a pre-training step, counted without running it: `TRITON_INTERPRET=1 python -m benchmarks.memory`.

What autograd saves for the backward is counted with fake tensors, storage by storage, at two batch sizes: the difference over
the tokens is what every further token costs, weights and their casts not included. transformers runs with SDPA and no
attention dropout, hidden dropout keeps one byte an element (as on a GPU), and every token is real. On a GPU, without that
variable, the peak of a real step is measured the same way.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fastbert
from fastbert.kernels.backend import use_backend
from fastbert.kernels.functional import cross_entropy
from fastbert.model.construction import transformers_classes
from fastbert.utils.sizes import SIZES

MASKED = 0.15
PRECISIONS = {"autocast to bf16": torch.float32, "bf16 weights": torch.bfloat16}
FASTBERT, TRANSFORMERS = "fastbert", "transformers"


@dataclass(frozen=True)
class Case:
    """config: options of BertConfig. weights: their dtype; float32 ones run under autocast to bfloat16."""

    config: dict[str, Any]
    seq_len: int
    weights: torch.dtype


def saved_bytes(name: str, case: Case, batch_size: int) -> int:
    """Bytes that autograd holds between the forward and the backward of one step, without the parameters."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = _model(name, case)
        parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        kept: dict[int, Any] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in parameters:
                kept[storage._cdata] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), _masks_of_a_byte():
            loss = _STEPS[name](model, case, batch_size, torch.device("cpu"))
        total = sum(storage.nbytes() for storage in kept.values())
        del loss
    return total


def bytes_per_token(name: str, case: Case, count: Callable[[str, Case, int], int] = saved_bytes, batch_size: int = 4) -> float:
    """The bytes of one more token of a micro-batch, from micro-batches of batch_size and twice that."""
    few, many = (count(name, case, size) for size in (batch_size, 2 * batch_size))
    return (many - few) / (batch_size * case.seq_len)


def peak_bytes(name: str, case: Case, batch_size: int) -> int:
    """The peak of a real forward and backward on the GPU."""
    device = torch.device("cuda")
    model = _model(name, case).to(device)
    for _ in range(2):  # the first step also allocates what stays
        model.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        _STEPS[name](model, case, batch_size, device).backward()
    peak = torch.cuda.max_memory_allocated()
    del model
    torch.cuda.empty_cache()
    return peak


def _model(name: str, case: Case) -> Any:
    attention = {} if name == FASTBERT else {"attention_probs_dropout_prob": 0.0, "attn_implementation": "sdpa"}
    before = torch.get_default_dtype()
    torch.set_default_dtype(case.weights)
    try:
        classes = fastbert if name == FASTBERT else transformers
        with transformers_classes():  # a class of fastbert builds its own all the same
            return classes.BertForPreTraining(transformers.BertConfig(**case.config, **attention)).train()
    finally:
        torch.set_default_dtype(before)


def _transformers_step(model: Any, case: Case, batch_size: int, device: torch.device) -> Tensor:
    shape = batch_size, case.seq_len
    zeros, ones = (torch.full(shape, value, dtype=torch.int64, device=device) for value in (0, 1))
    with _autocast(case, device):
        next_sentence = zeros[:, 0].clone()
        return model(zeros, attention_mask=ones, token_type_ids=zeros, labels=zeros, next_sentence_label=next_sentence).loss


def _fastbert_step(model: Any, case: Case, batch_size: int, device: torch.device) -> Tensor:
    """Packed, the loss at the masked positions only; their number is a constant, which counting fake labels could not give."""
    tokens = batch_size * case.seq_len
    ids = torch.zeros(tokens, dtype=torch.int64, device=device)
    bounds = torch.arange(0, tokens + 1, case.seq_len, dtype=torch.int32, device=device)
    rows = torch.arange(int(MASKED * tokens), device=device)
    with _autocast(case, device), use_backend("triton"):
        found = model.bert(ids, token_type_ids=ids, cu_seqlens=bounds, max_seqlen=case.seq_len)
        hidden = model.cls.predictions.transform(found.last_hidden_state.index_select(0, rows))
        decoder = model.cls.predictions.decoder
        loss = cross_entropy(hidden, decoder.weight, decoder.bias, ids.index_select(0, rows), num_labelled=len(rows))
        scores = model.cls.seq_relationship(found.pooler_output)
        return loss + torch.nn.functional.cross_entropy(scores.float(), ids[:batch_size])


_STEPS = {FASTBERT: _fastbert_step, TRANSFORMERS: _transformers_step}


def _autocast(case: Case, device: torch.device) -> Any:
    return torch.autocast(device.type, torch.bfloat16, enabled=case.weights == torch.float32)


@contextmanager
def _masks_of_a_byte() -> Iterator[None]:
    """Dropout with masks of bytes, as on a GPU: PyTorch's CPU path keeps them in the dtype of the activations."""
    original = torch.nn.functional.dropout

    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return torch.native_dropout(input, p, training)[0] if training and p > 0 else input

    torch.nn.functional.dropout = dropout
    try:
        yield
    finally:
        torch.nn.functional.dropout = original


def main(
    seq_len: Annotated[int, typer.Option(min=8, help="Tokens of every sequence.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="The smaller of the two that are compared on a GPU.")] = 8,
) -> None:
    """Print the bytes a token of a micro-batch costs with transformers and with fastbert, and how many more tokens fit."""
    on_gpu = torch.cuda.is_available()
    how = f"measured on {torch.cuda.get_device_name()}" if on_gpu else "counted: saved tensors"
    table = Table(title=f"Activation memory of a pre-training step, {seq_len} tokens a sequence ({how})")
    for column in ("", "KiB a token: transformers", "fastbert", "tokens in the same memory"):
        table.add_column(column, justify="right" if column else "left")
    for size in ("bert-base", "bert-large"):
        for precision, weights in PRECISIONS.items():
            case = Case(SIZES[size], seq_len, weights)
            count, batch = (peak_bytes, batch_size) if on_gpu else (saved_bytes, 4)
            peer, fused = (bytes_per_token(name, case, count, batch) for name in (TRANSFORMERS, FASTBERT))
            table.add_row(f"{size}, {precision}", f"{peer / 1024:.0f}", f"{fused / 1024:.0f}", f"{peer / fused:.2f}x")
    Console(width=120, highlight=False).print(table)


if __name__ == "__main__":
    typer.run(main)
