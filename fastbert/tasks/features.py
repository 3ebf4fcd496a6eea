"""Examples as token ids, packed batches of them, and a model's outputs by example.

Nothing is padded. Training batches hold examples in random order: without padding, grouping by length would save nothing and
make batches less random. Evaluation, where the order does not matter, uses batches of similar lengths and about equal tokens.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastbert.kernels.limits import IGNORE_INDEX

ROWS = 512  # texts tokenised in one call
EVALUATION_TOKENS = 4096


@dataclass(frozen=True, eq=False)
class Feature:
    """One row of a batch.

    sequences: (input_ids, token_type_ids), int32 (tokens,) each; several for a multiple choice. labels: by the name of the
    model's argument: a number, or an array (tokens,).
    """

    sequences: tuple[tuple[np.ndarray, np.ndarray], ...]
    labels: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(ids) for ids, _ in self.sequences)


def encode(tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int) -> tuple[list[Any], int]:
    """((input_ids, token_type_ids) of each text or pair, how many were cut to max_length tokens).

    Of a pair the longer text is cut first.
    """
    found, cut = [], 0
    for first in range(0, len(texts), ROWS):
        seconds = None if pairs is None else list(pairs[first : first + ROWS])
        encoded = tokenizer(
            list(texts[first : first + ROWS]), seconds, truncation="longest_first", max_length=max_length, verbose=False
        )
        for encoding in encoded.encodings:
            cut += bool(encoding.overflowing)
            found.append((np.array(encoding.ids, np.int32), np.array(encoding.type_ids, np.int32)))
    return found, cut


def collate(features: Sequence[Feature]) -> dict[str, Any]:
    """A packed batch: input_ids, token_type_ids int64 (tokens,), cu_seqlens int32 (sequences + 1,), max_seqlen, labels.

    Labels of rows are (batch,), int64 or float32; labels of tokens (tokens,), int64. num_choices: for multiple choices only.
    """
    sequences = [sequence for feature in features for sequence in feature.sequences]
    lengths = [len(ids) for ids, _ in sequences]
    batch: dict[str, Any] = {
        "input_ids": torch.from_numpy(np.concatenate([ids for ids, _ in sequences]).astype(np.int64)),
        "token_type_ids": torch.from_numpy(np.concatenate([types for _, types in sequences]).astype(np.int64)),
        "cu_seqlens": torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32),
        "max_seqlen": max(lengths),
    }
    if len(features[0].sequences) > 1:
        batch["num_choices"] = len(features[0].sequences)
    return batch | collate_labels(features)


def collate_labels(features: Sequence[Feature]) -> dict[str, Tensor]:
    """The labels of `collate` alone."""
    found: dict[str, Tensor] = {}
    for name in features[0].labels:
        values = [feature.labels[name] for feature in features]
        if isinstance(values[0], np.ndarray):
            found[name] = torch.from_numpy(np.concatenate(values).astype(np.int64))
        else:
            found[name] = torch.tensor(values, dtype=torch.float32 if isinstance(values[0], float) else torch.int64)
    return found


def loss_terms(feature: Feature) -> int:
    """How many of the terms whose mean is a batch's loss come from this row: its labelled tokens, or one."""
    of_tokens = [value for value in feature.labels.values() if isinstance(value, np.ndarray)]
    return int((of_tokens[0] != IGNORE_INDEX).sum()) if of_tokens else 1


def batches_by_length(features: Sequence[Feature], tokens: int = EVALUATION_TOKENS) -> Iterator[list[int]]:
    """Indices of the features, longest first, in batches of at most `tokens` tokens or one feature."""
    batch: list[int] = []
    total = 0
    for index in sorted(range(len(features)), key=lambda index: -len(features[index])):
        if batch and total + len(features[index]) > tokens:
            yield batch
            batch, total = [], 0
        batch.append(index)
        total += len(features[index])
    if batch:
        yield batch


@torch.no_grad()
def predict(model: nn.Module, features: Sequence[Feature], *, autocast: torch.dtype | None = None) -> list[np.ndarray]:
    """The logits of each feature, float32: (labels,) of a row, (tokens, labels) of tokens, (tokens, 2) of starts and ends.

    The model runs in eval mode and is left in the mode it was in.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    outputs: list[np.ndarray] = [np.empty(0)] * len(features)
    try:
        for indices in batches_by_length(features):
            chosen = [features[index] for index in indices]
            batch = collate([Feature(feature.sequences) for feature in chosen])
            moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
            with torch.autocast(device.type, autocast) if autocast else nullcontext():
                found = model(**moved)
            logits = found.logits if "logits" in found else torch.stack([found.start_logits, found.end_logits], -1)
            lengths, logits = [len(feature) for feature in chosen], logits.float().cpu()
            # A row has at least [CLS] and [SEP]: as many logits as tokens means logits of tokens.
            parts = logits.split(lengths) if len(logits) == sum(lengths) else logits
            for index, part in zip(indices, parts):
                outputs[index] = part.numpy()
    finally:
        model.train(was_training)
    return outputs
