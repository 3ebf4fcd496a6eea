"""Shallowly bidirectional models (as ELMo, Peters et al. 2018): one stack reads to the right, one to the left, and neither sees
what the other does; their last states are put side by side.

Each stack has half the width, heads and feed-forward of the configuration, so that the pair has its width; one table of words
serves both. Only packed inputs are taken. A pre-trained one is a folder with `config.json` of the pair and two checkpoints of
transformers' BertLMHeadModel, `left` (reads to the right) and `right` (reads the reversed sequence).
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.bert import modeling_bert as hf
from transformers.models.bert.configuration_bert import BertConfig

from fastbert.model.bert import BertModel
from fastbert.model.heads import (
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from fastbert.model.padding_policy import Caller
from fastbert.utils.errors import InputError

DIRECTION = "shallow"  # config.fastbert_direction
HALVES = ("left", "right")
WEIGHTS = "model.safetensors"


def is_shallow(config: BertConfig) -> bool:
    return getattr(config, "fastbert_direction", None) == DIRECTION


def half_config(config: BertConfig) -> BertConfig:
    """Of one stack. Raises InputError where the width, heads or feed-forward size is odd."""
    half = deepcopy(config)
    for name in ("hidden_size", "num_attention_heads", "intermediate_size"):
        value = getattr(config, name)
        if value % 2:
            raise InputError(f"expected an even {name} for two stacks of half of it, got {value}")
        setattr(half, name, value // 2)
    half.is_decoder = True
    vars(half).pop("fastbert_direction", None)
    return half


def reverse(cu_seqlens: Tensor, total: int) -> Tensor:
    """int64 (total,): for each token of a packed batch the one at its place when every sequence is reversed."""
    lengths = cu_seqlens.diff()
    sums = torch.repeat_interleave(cu_seqlens[:-1] + cu_seqlens[1:] - 1, lengths, output_size=total).long()
    return sums - torch.arange(total, device=cu_seqlens.device)


class ShallowBertModel(nn.Module):
    """In the place of a BertModel under a head: last_hidden_state (tokens, D), pooler_output (batch, D) of the last token as
    read to the right and the first as read to the left."""

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__()
        half = half_config(config)
        self.left, self.right = (BertModel(deepcopy(half), add_pooling_layer=False) for _ in HALVES)
        self.right.embeddings.word_embeddings = self.left.embeddings.word_embeddings
        self.pooler = hf.BertPooler(config) if add_pooling_layer else None

    def forward(
        self,
        input_ids: Tensor,
        *,
        token_type_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        return_dict: bool | None = None,
        caller: Caller | None = None,  # which matters at padding only, and a packed batch has none
        **kwargs: Any,
    ) -> tuple[Tensor, ...] | BaseModelOutputWithPoolingAndCrossAttentions:
        """As `BertModel` on a packed batch. Raises ValueError without cu_seqlens, or for another argument that is not None."""
        unknown = sorted(name for name, value in kwargs.items() if value is not None)
        if cu_seqlens is None or unknown:
            got = f"also {', '.join(unknown)}" if cu_seqlens is not None else "no cu_seqlens"
            raise ValueError(f"expected input_ids, token_type_ids, cu_seqlens and max_seqlen of a packed batch, got {got}")
        bounds = {"cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen}
        back = reverse(cu_seqlens, len(input_ids))
        types = None if token_type_ids is None else token_type_ids[back]
        left = self.left(input_ids, token_type_ids=token_type_ids, **bounds).last_hidden_state
        right = self.right(input_ids[back], token_type_ids=types, **bounds).last_hidden_state
        pooled = None
        if self.pooler is not None:
            ends = cu_seqlens[1:].long() - 1
            pooled = self.pooler(torch.cat([left[ends], right[ends]], -1)[:, None])
        found = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=torch.cat([left, right[back]], -1), pooler_output=pooled
        )
        return found.to_tuple() if return_dict is False else found


class _Shallow:
    """A head over a ShallowBertModel."""

    bert: Any
    post_init: Any

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.bert = ShallowBertModel(config, add_pooling_layer=self.bert.pooler is not None)
        table = "embeddings.word_embeddings.weight"
        self._tied_weights_keys = {f"bert.right.{table}": f"bert.left.{table}"}
        self.post_init()

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, and of a folder with two halves: their encoders, every other weight new.

        Raises InputError where a half does not fit.
        """
        if not (Path(path) / HALVES[0]).is_dir():
            return super().from_pretrained(path, *args, **kwargs)  # type: ignore[misc]
        config = kwargs.get("config") or BertConfig.from_pretrained(path)
        model: Any = cls(config).to(kwargs.get("dtype") or torch.float32)  # type: ignore[attr-defined]
        for name in HALVES:
            load_encoder(getattr(model.bert, name), Path(path) / name)
        model.eval()
        new = [name for name in model.state_dict() if not name.startswith(tuple(f"bert.{half}." for half in HALVES))]
        info = {"missing_keys": new, "unexpected_keys": [], "mismatched_keys": []}
        return (model, info) if kwargs.get("output_loading_info") else model


def load_encoder(encoder: BertModel, folder: Path) -> None:
    """The encoder of a BertLMHeadModel's folder. Raises InputError where its weights are not there or do not fit."""
    file = folder / WEIGHTS
    if not file.is_file():
        raise InputError(f"expected {WEIGHTS} in {folder}, got none")
    prefix = "bert."
    state = {name.removeprefix(prefix): value for name, value in load_file(file).items() if name.startswith(prefix)}
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"expected the weights of half a shallow model in {folder}, got: {error}") from error


class ShallowForSequenceClassification(_Shallow, BertForSequenceClassification):
    """One label or a number per sequence."""


class ShallowForMultipleChoice(_Shallow, BertForMultipleChoice):
    """Which of several sequences fits."""


class ShallowForTokenClassification(_Shallow, BertForTokenClassification):
    """A label per token."""


class ShallowForQuestionAnswering(_Shallow, BertForQuestionAnswering):
    """Where an answer starts and ends."""


HEADS: dict[str, type] = {
    "BertForSequenceClassification": ShallowForSequenceClassification,
    "BertForMultipleChoice": ShallowForMultipleChoice,
    "BertForTokenClassification": ShallowForTokenClassification,
    "BertForQuestionAnswering": ShallowForQuestionAnswering,
}
