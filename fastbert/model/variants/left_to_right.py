"""Left-to-right models under task heads: a sequence is pooled from its last token, the only one that attends to all others.

transformers' BERT with `is_decoder` masks the future but still pools the first token, which then attends to nothing but
itself. The pooler here has another name, so that transformers reports it missing from a checkpoint whose pooler was trained
on the first token.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.bert.configuration_bert import BertConfig

from fastbert.model.bert import BertModel
from fastbert.model.cache_name import CACHE
from fastbert.model.heads import BertForMultipleChoice, BertForSequenceClassification
from fastbert.model.registry import class_named, register_outputs
from fastbert.model.variants.shallow import HEADS as SHALLOW
from fastbert.model.variants.shallow import is_shallow
from fastbert.utils.errors import InputError


class LastTokenBertModel(BertModel):
    """A BertModel whose pooler_output is of the last real token of each sequence; `pool_last_token` converts one."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        cu_seqlens: Tensor | None = None,
        output_positions: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, ...] | BaseModelOutputWithPoolingAndCrossAttentions:
        """As `BertModel`. Raises ValueError for an attention mask that is not (batch, seq)."""
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError(f"expected an attention_mask of shape (batch, seq), got {tuple(attention_mask.shape)}")
        options: dict[str, Any] = {"cu_seqlens": cu_seqlens, "return_dict": True} | kwargs
        outputs: Any = super().forward(input_ids, attention_mask, *args, **options)
        hidden = outputs.last_hidden_state  # (B, S, D), or (T, D) packed
        if cu_seqlens is not None:
            last = hidden.index_select(0, cu_seqlens[1:].long() - 1)  # (B, D)
        elif attention_mask is None:
            last = hidden[:, -1]  # (B, D)
        else:
            positions = torch.arange(hidden.shape[1], device=hidden.device)
            ends = (positions * attention_mask.to(hidden.device, torch.bool)).amax(1)  # (B,)
            last = hidden[torch.arange(len(hidden), device=hidden.device), ends]  # (B, D)
        result = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=hidden if output_positions is None else hidden[output_positions],
            pooler_output=self.last_token_pooler(last[:, None]),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: outputs.get(CACHE)},
        )
        return result.to_tuple() if return_dict is False else result


def pool_last_token(bert: BertModel) -> None:
    """Turns a BertModel with a pooler into a LastTokenBertModel, in place; its pooler becomes `last_token_pooler`.

    Raises ValueError where it has none.
    """
    if bert.pooler is None:
        raise ValueError("expected a BertModel with a pooler, got one without")
    bert.__class__ = LastTokenBertModel
    bert.last_token_pooler, bert.pooler = bert.pooler, None
    register_outputs(LastTokenBertModel)


class LeftToRightForSequenceClassification(BertForSequenceClassification):
    """One label or a number per sequence, from its last token."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        pool_last_token(self.bert)


class LeftToRightForMultipleChoice(BertForMultipleChoice):
    """Which of several sequences fits, each judged by its last token."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        pool_last_token(self.bert)


LEFT_TO_RIGHT: dict[str, type] = {
    "BertForSequenceClassification": LeftToRightForSequenceClassification,
    "BertForMultipleChoice": LeftToRightForMultipleChoice,
}


def head_class(name: str, config: BertConfig) -> Any:
    """fastbert's class of this name, or its variant for an encoder of this configuration.

    name: of one of transformers' classes. Heads over tokens need no variant for a left-to-right encoder.
    Raises InputError for a head that has no variant for a shallow encoder.
    """
    if is_shallow(config):
        if name not in SHALLOW:
            raise InputError(f"expected one of {', '.join(SHALLOW)} over a shallow encoder, got {name}")
        return SHALLOW[name]
    if config.is_decoder and name in LEFT_TO_RIGHT:
        return LEFT_TO_RIGHT[name]
    return class_named(name)
