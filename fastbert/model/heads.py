"""BERT's heads: transformers' classes that declare which positions their loss reads, and take packed batches.

Padding positions hold zeros, which no loss of transformers may see. A head that reads token states therefore passes
`loss_positions` to its BertModel, whose one transfer to the host then finds out whether any of them is padding; only then is
padding computed. What a pooler reads always is.

B batch, C choices, S sequence, T tokens of a batch packed by its caller, V vocabulary. With cu_seqlens and max_seqlen every
head takes a packed batch: inputs and token labels (T,), token outputs (T, ...), pooled outputs (B, ...).
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import CrossEntropyLoss
from transformers.cache_utils import Cache
from transformers.loss.loss_utils import LOSS_MAPPING
from transformers.modeling_outputs import (
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.models.bert import modeling_bert as hf
from transformers.models.bert.configuration_bert import BertConfig
from transformers.utils.generic import can_return_tuple

from fastbert.kernels.limits import IGNORE_INDEX
from fastbert.model.bert import BertPreTrainedModel
from fastbert.model.cache_name import CACHE, with_cache_name
from fastbert.model.head_inputs import bert_inputs, declare, is_padded, outputs_at, token_caller
from fastbert.model.losses import labelled_loss, mean_or_sum_over
from fastbert.model.padding.policy import Caller, policy_from_option, policy_of, set_policy
from fastbert.model.registry import replaces
from fastbert.model.span_logits import fill_padding_logits, pad_packed_logits, span_loss


class _Head:
    """The option `padding` of `BertModel`, for a head of transformers, which comes behind this class among the bases."""

    bert: Any

    def __init__(self, config: BertConfig, *, padding: str | None = None) -> None:
        policy = policy_from_option(padding, type(self).__name__)
        build: Any = super().__init__
        build(config)
        set_policy(self.bert, policy)


@dataclass
class BertForPreTrainingOutput(hf.BertForPreTrainingOutput):
    """transformers' output and the two losses that `loss` adds up: what a call with num_pairs_in_batch returns."""

    mlm_loss: Tensor | None = None
    next_sentence_loss: Tensor | None = None


@replaces(hf.BertForPreTraining)
class BertForPreTraining(_Head, hf.BertForPreTraining, BertPreTrainedModel):
    """Masked language model and next-sentence prediction."""

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        return_logits: bool = True,
        num_items_in_batch: Tensor | int | None = None,
        num_pairs_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, ...] | hf.BertForPreTrainingOutput:
        """As in transformers, and:

        return_logits: False, together with labels, computes the vocabulary projection at labelled positions only and leaves
            prediction_logits None.
        num_items_in_batch, num_pairs_in_batch: labelled tokens and pairs of all batches whose gradients are added up; each
            loss is then a sum divided by its number instead of a mean, and the output is fastbert's `BertForPreTrainingOutput`
            with both losses. They need return_logits=False; with True num_items_in_batch is ignored as in transformers, whose
            Trainer passes it.
        """
        if return_logits and num_pairs_in_batch is not None:
            raise ValueError("expected return_logits=False beside num_pairs_in_batch, got True")
        inputs = bert_inputs(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, cu_seqlens, max_seqlen)
        with_loss = labels is not None and next_sentence_label is not None
        positions: Any = labels != IGNORE_INDEX if with_loss and is_padded(inputs) else None
        inputs |= declare(self, token_caller(self, with_loss), positions)
        if return_logits or labels is None:
            targets = {"labels": labels, "next_sentence_label": next_sentence_label}
            return super().forward(**inputs, **targets, return_dict=True, **kwargs)
        labelled = labels != IGNORE_INDEX if with_loss else torch.zeros_like(labels, dtype=torch.bool)
        outputs = self.bert(**inputs, **outputs_at(labelled), return_dict=True, **kwargs)
        scores = self.cls.seq_relationship(outputs.pooler_output)
        loss = mlm_loss = next_sentence_loss = None
        if labels is not None and next_sentence_label is not None:
            mlm_loss = labelled_loss(self.cls.predictions, outputs.last_hidden_state, labels, num_items_in_batch)
            next_sentence_loss = mean_or_sum_over(
                functools.partial(F.cross_entropy, scores.view(-1, 2), next_sentence_label.view(-1)), num_pairs_in_batch
            )
            loss = mlm_loss + next_sentence_loss
        if num_pairs_in_batch is None:
            output = hf.BertForPreTrainingOutput
        else:
            output = functools.partial(BertForPreTrainingOutput, mlm_loss=mlm_loss, next_sentence_loss=next_sentence_loss)
        return output(
            loss=loss,
            prediction_logits=None,
            seq_relationship_logits=scores,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


@replaces(hf.BertForMaskedLM)
class BertForMaskedLM(_Head, hf.BertForMaskedLM, BertPreTrainedModel):
    """Masked language model."""

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        return_logits: bool = True,
        **kwargs: Any,
    ) -> tuple[Tensor, ...] | MaskedLMOutput:
        """As in transformers. return_logits: False, together with labels, computes the vocabulary projection at labelled
        positions only and leaves logits None.
        """
        inputs = bert_inputs(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, cu_seqlens, max_seqlen)
        inputs |= {"encoder_hidden_states": encoder_hidden_states, "encoder_attention_mask": encoder_attention_mask}
        labelled = None if labels is None else labels != IGNORE_INDEX
        inputs |= declare(self, token_caller(self, labels is not None), labelled if is_padded(inputs) else None)
        if return_logits or labels is None or labelled is None:
            return super().forward(**inputs, labels=labels, return_dict=True, **kwargs)
        outputs = self.bert(**inputs, **outputs_at(labelled), return_dict=True, **kwargs)
        return MaskedLMOutput(
            loss=labelled_loss(self.cls.predictions, outputs.last_hidden_state, labels),
            logits=None,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


@replaces(hf.BertLMHeadModel)
class BertLMHeadModel(_Head, hf.BertLMHeadModel, BertPreTrainedModel):
    """Left-to-right language model."""

    @can_return_tuple
    @with_cache_name
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, ...] | CausalLMOutputWithCrossAttentions:
        """As in transformers. In a packed batch no token predicts the first one of the next sequence, and logits_to_keep
        is not supported.
        """
        inputs = bert_inputs(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, cu_seqlens, max_seqlen)
        inputs |= {"encoder_hidden_states": encoder_hidden_states, "encoder_attention_mask": encoder_attention_mask}
        inputs[CACHE] = past_key_values
        positions = None if labels is None or not is_padded(inputs) else self._loss_positions(labels, **kwargs)
        inputs |= declare(self, token_caller(self, labels is not None), positions)
        if is_padded(inputs):
            options = {"use_cache": use_cache, "logits_to_keep": logits_to_keep, "return_dict": True}
            return super().forward(**inputs, labels=labels, **options, **kwargs)
        if not isinstance(logits_to_keep, int) or logits_to_keep != 0:
            raise ValueError(f"expected no logits_to_keep for a packed input, got {logits_to_keep}")
        outputs = self.bert(**inputs, use_cache=use_cache, return_dict=True, **kwargs)
        logits = self.cls(outputs.last_hidden_state)
        loss = None
        if labels is not None and cu_seqlens is not None:
            shifted = F.pad(labels, (0, 1), value=IGNORE_INDEX)[1:]
            # The last token of each sequence predicts nothing; an index before the first token of all wraps to the last.
            ends = (cu_seqlens[1:].long() - 1).remainder(max(labels.shape[0], 1))
            shifted = shifted.index_fill(0, ends, IGNORE_INDEX) if labels.shape[0] else shifted
            options = {"vocab_size": self.config.vocab_size, "shift_labels": shifted} | kwargs
            loss = self.loss_function(logits=logits, labels=labels, **options)
        return CausalLMOutputWithCrossAttentions(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _loss_positions(
        self, labels: Tensor, *, ignore_index: int = IGNORE_INDEX, shift_labels: Tensor | None = None, **_: Any
    ) -> Tensor:
        if self.loss_function is not LOSS_MAPPING["ForCausalLM"]:
            return torch.ones_like(labels, dtype=torch.bool)  # a user's own loss may read anything
        shifted = F.pad(labels, (0, 1), value=ignore_index)[..., 1:] if shift_labels is None else shift_labels
        return shifted != ignore_index


@replaces(hf.BertForNextSentencePrediction)
class BertForNextSentencePrediction(_Head, hf.BertForNextSentencePrediction, BertPreTrainedModel):
    """Whether the second sentence follows the first."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, ...] | NextSentencePredictorOutput:
        """As in transformers."""
        inputs = bert_inputs(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, cu_seqlens, max_seqlen)
        return super().forward(**inputs, **declare(self, Caller.POOLED_HEAD), labels=labels, **kwargs)


@replaces(hf.BertForSequenceClassification)
class BertForSequenceClassification(_Head, hf.BertForSequenceClassification, BertPreTrainedModel):
    """One label, several or a number per sequence."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, ...] | SequenceClassifierOutput:
        """As in transformers."""
        inputs = bert_inputs(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, cu_seqlens, max_seqlen)
        return super().forward(**inputs, **declare(self, Caller.POOLED_HEAD), labels=labels, **kwargs)


@replaces(hf.BertForMultipleChoice)
class BertForMultipleChoice(_Head, hf.BertForMultipleChoice, BertPreTrainedModel):
    """Which of several sequences fits."""

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        num_choices: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, ...] | MultipleChoiceModelOutput:
        """As in transformers. num_choices: C, needed with cu_seqlens, whose B * C sequences are the choices question by
        question.
        """
        inputs = bert_inputs(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, cu_seqlens, max_seqlen)
        inputs |= declare(self, Caller.POOLED_HEAD)
        if is_padded(inputs):
            return super().forward(**inputs, labels=labels, return_dict=True, **kwargs)
        if num_choices is None:
            raise ValueError("expected num_choices beside cu_seqlens, got None")
        outputs = self.bert(**inputs, return_dict=True, **kwargs)
        logits = self.classifier(self.dropout(outputs.pooler_output))
        if not torch.jit.is_tracing() and logits.shape[0] % num_choices:
            raise ValueError(f"expected a multiple of {num_choices} sequences (num_choices), got {logits.shape[0]}")
        logits = logits.view(-1, num_choices)
        return MultipleChoiceModelOutput(
            loss=None if labels is None else CrossEntropyLoss()(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


@replaces(hf.BertForTokenClassification)
class BertForTokenClassification(_Head, hf.BertForTokenClassification, BertPreTrainedModel):
    """A label per token."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, ...] | TokenClassifierOutput:
        """As in transformers."""
        inputs = bert_inputs(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, cu_seqlens, max_seqlen)
        positions = labels != IGNORE_INDEX if labels is not None and is_padded(inputs) else None
        inputs |= declare(self, token_caller(self, labels is not None), positions)
        return super().forward(**inputs, labels=labels, **kwargs)


@replaces(hf.BertForQuestionAnswering)
class BertForQuestionAnswering(_Head, hf.BertForQuestionAnswering, BertPreTrainedModel):
    """Where an answer starts and ends.

    Its loss is a softmax over all positions, padding included, so with labels every padding position is computed.
    Without labels the logits at padding lie a fixed distance below the smallest real one of their row.
    """

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        real_tokens_only: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, ...] | QuestionAnsweringModelOutput:
        """As in transformers. real_tokens_only: True takes the softmax over real tokens, which keeps a batch with padding
        packed. In a packed batch it always is, and start_positions, end_positions count from each sequence's start.
        """
        inputs = bert_inputs(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, cu_seqlens, max_seqlen)
        with_loss = start_positions is not None and end_positions is not None
        over_padding = is_padded(inputs) and with_loss and not real_tokens_only
        tokens = input_ids if input_ids is not None else inputs_embeds
        positions = None
        if over_padding and tokens is not None:
            positions = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        inputs |= declare(self, token_caller(self, with_loss), positions)
        options = {"return_dict": True} | kwargs
        if over_padding:
            return super().forward(**inputs, start_positions=start_positions, end_positions=end_positions, **options)
        outputs = super().forward(**inputs, **options) if is_padded(inputs) else self._packed_logits(inputs, options)
        logits = [outputs.start_logits, outputs.end_logits]
        if cu_seqlens is not None and max_seqlen is not None:
            logits = [pad_packed_logits(value, cu_seqlens, max_seqlen) for value in logits]
        elif attention_mask is not None and attention_mask.dim() <= 2:
            padding = ~attention_mask.to(logits[0].device, torch.bool).expand(logits[0].shape)
            if not policy_of(self.bert).exact:
                outputs["start_logits"], outputs["end_logits"] = (fill_padding_logits(value, padding) for value in logits)
            logits = [value.masked_fill(padding, torch.finfo(value.dtype).min) for value in logits]
        if start_positions is None or end_positions is None:
            return outputs
        loss = (span_loss(logits[0], start_positions) + span_loss(logits[1], end_positions)) / 2
        return QuestionAnsweringModelOutput(loss=loss, **outputs)

    def _packed_logits(self, inputs: dict[str, Any], options: dict[str, Any]) -> QuestionAnsweringModelOutput:
        outputs = self.bert(**inputs, **options)
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).split(1, dim=-1)
        return QuestionAnsweringModelOutput(
            start_logits=start_logits.squeeze(-1).contiguous(),
            end_logits=end_logits.squeeze(-1).contiguous(),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
