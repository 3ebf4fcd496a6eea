"""The names of `transformers.models.bert.modeling_bert`, for code that imports BERT's parts from there.

The models, `BertLayer` and `BertPredictionHeadTransform` are fastbert's, every other part is transformers' own. A part that is
used outside a BertModel computes the same as in transformers, on padded tensors: only BertModel packs.
"""

from transformers.models.bert.modeling_bert import (
    BertAttention,
    BertCrossAttention,
    BertEmbeddings,
    BertEncoder,
    BertForPreTrainingOutput,
    BertIntermediate,
    BertLMPredictionHead,
    BertOnlyMLMHead,
    BertOnlyNSPHead,
    BertOutput,
    BertPooler,
    BertPreTrainingHeads,
    BertSelfAttention,
    BertSelfOutput,
)

from fastbert.model.bert import BertModel, BertPreTrainedModel
from fastbert.model.heads import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
)
from fastbert.model.layer import BertLayer, BertPredictionHeadTransform

__all__ = [
    "BertAttention",
    "BertCrossAttention",
    "BertEmbeddings",
    "BertEncoder",
    "BertForMaskedLM",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
    "BertForPreTrainingOutput",
    "BertForQuestionAnswering",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertIntermediate",
    "BertLMHeadModel",
    "BertLMPredictionHead",
    "BertLayer",
    "BertModel",
    "BertOnlyMLMHead",
    "BertOnlyNSPHead",
    "BertOutput",
    "BertPooler",
    "BertPreTrainedModel",
    "BertPreTrainingHeads",
    "BertPredictionHeadTransform",
    "BertSelfAttention",
    "BertSelfOutput",
]
