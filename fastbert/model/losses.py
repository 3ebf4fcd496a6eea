"""Losses at labelled positions alone: the vocabulary projection is not computed elsewhere.

N positions, T tokens of a packed batch, B batch, S sequence, D hidden size.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.bert import modeling_bert as hf

from fastbert.kernels import functional
from fastbert.kernels.limits import IGNORE_INDEX
from fastbert.model.fallback.hooks import find_intervention, is_plain


def mean_or_sum_over(loss: Callable[..., Tensor], total: Tensor | int | None) -> Tensor:
    """The mean over the batch, or its sum divided by `total`, where gradients of several batches are added up.

    loss: takes `reduction` as PyTorch's losses do.
    """
    return loss(reduction="mean") if total is None else loss(reduction="sum") / total


def labelled_loss(
    predictions: hf.BertLMPredictionHead, hidden: Tensor, labels: Tensor, total: Tensor | int | None = None
) -> Tensor:
    """The masked-language-model loss from the hidden states of the labelled positions, or of all while tracing.

    hidden: (N, D) or (B, S, D). labels: of all positions, int64 (T,) or (B, S). total: see `mean_or_sum_over`.
    """
    labels = labels.reshape(-1).to(hidden.device)
    hidden = hidden.reshape(-1, hidden.shape[-1])
    if not torch.compiler.is_compiling() or hidden.shape[0] != labels.shape[0]:
        labels = labels.index_select(0, torch.nonzero_static(labels != IGNORE_INDEX, size=hidden.shape[0]).squeeze(1))
    decoder = predictions.decoder
    if not (
        type(predictions) is hf.BertLMPredictionHead and find_intervention(predictions) is None and is_plain(decoder, nn.Linear)
    ):
        logits = predictions(hidden)
        return mean_or_sum_over(functools.partial(F.cross_entropy, logits.view(-1, logits.shape[-1]), labels), total)
    hidden = predictions.transform(hidden)
    num_labelled = None if torch.compiler.is_compiling() else labels.shape[0]
    loss = functools.partial(functional.cross_entropy, hidden, decoder.weight, decoder.bias, labels, num_labelled=num_labelled)
    return mean_or_sum_over(loss, total)
