"""Losses, accuracies and perplexity of a pre-training model on held-out text."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert.data.batches import collate
from fastbert.data.masking import Masker
from fastbert.data.shards import Shards
from fastbert.kernels.limits import IGNORE_INDEX

from .shallow import ShallowForPreTraining

ROWS = 1024  # labelled positions whose logits are in memory at a time
SUMS = ("mlm_loss", "mlm_correct", "labels", "next_sentence_loss", "next_sentence_correct", "pairs")


@torch.no_grad()
def sums_of(model: Any, batch: dict[str, Any]) -> Tensor:
    """Sums over one packed batch, float64 (6,), in the order of SUMS; without a next-sentence head the last three are 0.

    model: of `objectives`, in eval mode.
    """
    if isinstance(model, ShallowForPreTraining):
        left, right = (sums_of(half, inputs) for half, inputs in model.halves(batch))
        return left + right
    inputs = {name: batch[name] for name in ("input_ids", "token_type_ids", "cu_seqlens", "max_seqlen")}
    labels, is_random = batch["labels"], batch["next_sentence_label"]
    labelled = labels != IGNORE_INDEX  # (tokens,)
    outputs = model.bert(**inputs, output_positions=labelled)
    targets = labels[labelled]
    sums = torch.zeros(len(SUMS), dtype=torch.float64, device=labels.device)
    for hidden, target in zip(outputs.last_hidden_state.split(ROWS), targets.split(ROWS)):
        logits = model.cls.predictions(hidden).float()  # (ROWS, vocabulary)
        sums[0] += F.cross_entropy(logits, target, reduction="sum")
        sums[1] += (logits.argmax(-1) == target).sum()
    sums[2] = targets.numel()
    if not hasattr(model.cls, "seq_relationship"):
        return sums
    scores = model.cls.seq_relationship(outputs.pooler_output).float()  # (sequences, 2)
    sums[3] = F.cross_entropy(scores, is_random, reduction="sum")
    sums[4] = (scores.argmax(-1) == is_random).sum()
    sums[5] = is_random.numel()
    return sums


def held_out_batches(shards: Shards, masker: Masker, tokens: int, process: tuple[int, int], limit: int | None) -> Any:
    """Packed batches of about `tokens` tokens of the first `limit` samples, divided over the processes in turn.

    process: (rank, number of processes).
    """
    count = len(shards) if limit is None else min(limit, len(shards))
    ends = np.cumsum(shards.lengths[:count])
    first, number = 0, 0
    while first < count:
        begin = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, begin + tokens, side="right")))
        if number % process[1] == process[0]:
            yield collate(shards, masker, range(first, last), epoch=0)
        first, number = last, number + 1


def metrics_of(sums: Tensor, prefix: str = "eval_") -> dict[str, float]:
    """The metrics, from the sums of all batches."""
    found = dict(zip(SUMS, sums.tolist()))
    labels, pairs = max(found["labels"], 1.0), max(found["pairs"], 1.0)
    mlm_loss, next_sentence_loss = found["mlm_loss"] / labels, found["next_sentence_loss"] / pairs
    values = {
        "loss": mlm_loss + next_sentence_loss,
        "mlm_loss": mlm_loss,
        "perplexity": math.exp(min(mlm_loss, 700.0)),
        "mlm_accuracy": found["mlm_correct"] / labels,
        "next_sentence_loss": next_sentence_loss,
        "next_sentence_accuracy": found["next_sentence_correct"] / pairs,
    }
    return {prefix + name: value for name, value in values.items()}
