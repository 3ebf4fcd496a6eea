"""Models and batches by name, for every benchmark."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from fastbert.kernels.limits import IGNORE_INDEX
from fastbert.utils.sizes import SIZES

MODELS: dict[str, dict[str, int]] = {
    **SIZES,
    "bert-base, 4 layers": SIZES["bert-base"] | {"num_hidden_layers": 4},
    "bert-base, 2 layers": SIZES["bert-base"] | {"num_hidden_layers": 2},
    "tiny": dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512),
}
MASKED_SHARE = 0.15


def config(model: str, **changes: Any) -> transformers.BertConfig:
    """The configuration of a model of MODELS; everything else as in BERT's paper."""
    return transformers.BertConfig(**{**MODELS[model], **changes})


@dataclass(frozen=True)
class Batch:
    """A padded batch.

    inputs: input_ids, attention_mask, and for pre-training labels, token_type_ids and next_sentence_label. seqlens: real
    tokens of each row. num_labels: masked positions with a label.
    """

    inputs: dict[str, Tensor]
    seqlens: tuple[int, ...]
    num_labels: int = 0

    @property
    def real_tokens(self) -> int:
        return sum(self.seqlens)

    @property
    def padded_tokens(self) -> int:
        return self.inputs["input_ids"].numel()

    @property
    def seqlen(self) -> int:
        return self.inputs["input_ids"].shape[1]


def batch(seqlens: Sequence[int], vocab_size: int, device: torch.device, *, seed: int = 0) -> Batch:
    """Random ids padded to the longest row, as a tokenizer pads."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(seqlens)) < torch.tensor(seqlens)[:, None]
    ids = torch.randint(1000 % vocab_size, vocab_size, mask.shape, generator=generator) * mask
    return Batch({"input_ids": ids.to(device), "attention_mask": mask.long().to(device)}, tuple(seqlens))


def pretraining_batch(seqlens: Sequence[int], vocab_size: int, device: torch.device, *, seed: int = 0) -> Batch:
    """The same with 15% of each row's tokens labelled, segment ids, and a next-sentence label per row."""
    plain = batch(seqlens, vocab_size, torch.device("cpu"), seed=seed)
    ids = plain.inputs["input_ids"]
    rng = random.Random(seed)
    labels = torch.full_like(ids, IGNORE_INDEX)
    types = torch.zeros_like(ids)
    for row, seqlen in enumerate(seqlens):
        masked = rng.sample(range(seqlen), max(1, round(MASKED_SHARE * seqlen)))
        labels[row, masked] = ids[row, masked]
        ids[row, masked] = 103 % vocab_size  # [MASK]
        types[row, seqlen // 2 : seqlen] = 1
    next_sentence = torch.tensor([rng.randint(0, 1) for _ in seqlens])
    inputs = plain.inputs | {"labels": labels, "token_type_ids": types, "next_sentence_label": next_sentence}
    moved = {name: tensor.to(device) for name, tensor in inputs.items()}
    return Batch(moved, tuple(seqlens), int((labels != IGNORE_INDEX).sum()))
