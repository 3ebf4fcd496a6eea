"""Shallowly bidirectional models as in ELMo (Peters et al. 2018): two independent stacks, one left-to-right and one
right-to-left, whose last hidden states are concatenated.

Each stack has half the hidden size, heads and feed-forward size of the configuration, so that the pair has the configured
size; both share one table of word embeddings. Inputs must be packed. A pre-trained pair is a folder with `config.json` of the
pair and two checkpoints of transformers' BertLMHeadModel, `left` (left-to-right) and `right` (on the reversed sequence).

T tokens of a packed batch of B sequences, D hidden size of the pair.
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

from fastbert.model.bert import BertModel, BertPreTrainedModel
from fastbert.model.heads import (
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from fastbert.model.padding.policy import Caller
from fastbert.utils.errors import InputError

DIRECTION = "shallow"  # config.fastbert_direction
HALVES = ("left", "right")
WEIGHTS = "model.safetensors"


def is_shallow(config: BertConfig) -> bool:
    return getattr(config, "fastbert_direction", None) == DIRECTION


def half_config(config: BertConfig) -> BertConfig:
    """The configuration of one stack. Raises InputError where the width, heads or feed-forward size is odd."""
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
    """int64 (T,): the index of each token's mirror image in its sequence; it reverses every sequence of a packed batch.

    cu_seqlens: int32 (B + 1,). total: T.
    """
    lengths = cu_seqlens.diff()
    sums = torch.repeat_interleave(cu_seqlens[:-1] + cu_seqlens[1:] - 1, lengths, output_size=total).long()
    return sums - torch.arange(total, device=cu_seqlens.device)


class ShallowBertModel(nn.Module):
    """The two stacks, with a BertModel's interface for the heads.

    last_hidden_state is (T, D); pooler_output (B, D) is of each stack's final token: the last of the sequence from the left,
    the first from the right.
    """

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
        mirror = reverse(cu_seqlens, len(input_ids))  # (T,)
        types = None if token_type_ids is None else token_type_ids[mirror]
        left = self.left(input_ids, token_type_ids=token_type_ids, **bounds).last_hidden_state  # (T, D / 2)
        right = self.right(input_ids[mirror], token_type_ids=types, **bounds).last_hidden_state  # (T, D / 2), reversed
        pooled = None
        if self.pooler is not None:
            ends = cu_seqlens[1:].long() - 1  # (B,)
            pooled = self.pooler(torch.cat([left[ends], right[ends]], -1)[:, None])
        result = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=torch.cat([left, right[mirror]], -1), pooler_output=pooled
        )
        return result.to_tuple() if return_dict is False else result


class _ShallowHead(BertPreTrainedModel):
    """A head over a ShallowBertModel."""

    bert: Any

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = ShallowBertModel(config, add_pooling_layer=self.bert.pooler is not None)
        table = "embeddings.word_embeddings.weight"
        self._tied_weights_keys = {f"bert.right.{table}": f"bert.left.{table}"}
        self.post_init()

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; from a folder of two halves, their encoders are loaded and every other weight is new.

        Raises InputError where a half does not fit.
        """
        if not (Path(path) / HALVES[0]).is_dir():
            return super().from_pretrained(path, *args, **kwargs)
        config = kwargs.get("config") or BertConfig.from_pretrained(path)
        model: Any = cls(config).to(kwargs.get("dtype") or torch.float32)
        for name in HALVES:
            load_encoder(getattr(model.bert, name), Path(path) / name)
        model.eval()
        new = [name for name in model.state_dict() if not name.startswith(tuple(f"bert.{half}." for half in HALVES))]
        info = {"missing_keys": new, "unexpected_keys": [], "mismatched_keys": []}
        return (model, info) if kwargs.get("output_loading_info") else model


def load_encoder(encoder: BertModel, folder: Path) -> None:
    """Loads the encoder of a BertLMHeadModel's folder into `encoder`.

    Raises InputError where its weights are missing or do not fit.
    """
    file = folder / WEIGHTS
    if not file.is_file():
        raise InputError(f"expected {WEIGHTS} in {folder}, got none")
    prefix = "bert."
    state = {name.removeprefix(prefix): value for name, value in load_file(file).items() if name.startswith(prefix)}
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"expected the weights of half a shallow model in {folder}, got: {error}") from error


class ShallowForSequenceClassification(_ShallowHead, BertForSequenceClassification):
    """One label or a number per sequence."""


class ShallowForMultipleChoice(_ShallowHead, BertForMultipleChoice):
    """Which of several sequences fits."""


class ShallowForTokenClassification(_ShallowHead, BertForTokenClassification):
    """A label per token."""


class ShallowForQuestionAnswering(_ShallowHead, BertForQuestionAnswering):
    """Where an answer starts and ends."""


HEADS: dict[str, type] = {
    "BertForSequenceClassification": ShallowForSequenceClassification,
    "BertForMultipleChoice": ShallowForMultipleChoice,
    "BertForTokenClassification": ShallowForTokenClassification,
    "BertForQuestionAnswering": ShallowForQuestionAnswering,
}
