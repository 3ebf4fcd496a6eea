"""The models of `objectives`: classes with the names and states of transformers', which take packed batches.

Their losses can be divided by the number of labels of a whole step, of which a batch is a part.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.bert import modeling_bert as hf
from transformers.models.bert.configuration_bert import BertConfig

from fastbert.kernels.limits import IGNORE_INDEX
from fastbert.model import heads
from fastbert.model.heads import BertForPreTrainingOutput
from fastbert.model.variants.left_to_right import pool_last_token


class _PackedLosses:
    """A forward that returns the language-model loss and, where `cls` has its head, the next-sentence loss."""

    bert: Any
    cls: Any

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        labels: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        next_sentence_label: Tensor,
        *,
        num_items_in_batch: Tensor | int | None = None,
        num_pairs_in_batch: Tensor | int | None = None,
        return_logits: bool = False,
    ) -> BertForPreTrainingOutput:
        """The losses of a packed batch.

        labels: (tokens,), what each position predicts, -100 for nothing; already shifted where it is the next token.
        num_items_in_batch, num_pairs_in_batch: of the whole step; each sum of losses is divided by its number, None: it is a
        mean. next_sentence_loss is None without its head.
        """
        if return_logits:
            raise ValueError("expected return_logits=False in pre-training, got True")
        packed = {"cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen}
        found = self.bert(input_ids, token_type_ids=token_type_ids, output_positions=labels != IGNORE_INDEX, **packed)
        loss = token_loss = heads.labelled_loss(self.cls.predictions, found.last_hidden_state, labels, num_items_in_batch)
        head, next_sentence_loss = getattr(self.cls, "seq_relationship", None), None
        if head is not None:
            scores = head(found.pooler_output)
            pair_loss = functools.partial(nn.functional.cross_entropy, scores, next_sentence_label)
            next_sentence_loss = heads.mean_or_sum_over(pair_loss, num_pairs_in_batch)
            loss = token_loss + next_sentence_loss
        return BertForPreTrainingOutput(loss=loss, mlm_loss=token_loss, next_sentence_loss=next_sentence_loss)


class BertForMaskedLM(_PackedLosses, heads.BertForMaskedLM):
    """Masked language model alone."""


class BertLMHeadModel(_PackedLosses, heads.BertLMHeadModel):
    """Left-to-right language model. next_sentence: predict the next sentence too, from the last token."""

    def __init__(self, config: BertConfig, next_sentence: bool = False) -> None:
        if not config.is_decoder:
            raise ValueError("expected is_decoder in the configuration of a left-to-right model, got False")
        super().__init__(config)
        if next_sentence:
            self.bert.pooler = hf.BertPooler(config)
            self.cls.seq_relationship = nn.Linear(config.hidden_size, 2)
            with torch.no_grad():
                for part in (self.bert.pooler.dense, self.cls.seq_relationship):
                    self._init_weights(part)
            pool_last_token(self.bert)
