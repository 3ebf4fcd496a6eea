"""fastbert: transformers' BERT classes on packed tokens and hand-written Triton kernels, verified."""

import importlib
from typing import Any

from fastbert.version import __version__

_HOMES = {
    "BertConfig": "transformers",
    "BertForMaskedLM": "fastbert.heads",
    "BertForMultipleChoice": "fastbert.heads",
    "BertForNextSentencePrediction": "fastbert.heads",
    "BertForPreTraining": "fastbert.heads",
    "BertForQuestionAnswering": "fastbert.heads",
    "BertForSequenceClassification": "fastbert.heads",
    "BertForTokenClassification": "fastbert.heads",
    "BertLMHeadModel": "fastbert.heads",
    "BertModel": "fastbert.modeling",
    "accelerate": "fastbert.swap",
    "answer": "fastbert.inference.answering",
    "batch_invariant": "fastbert.invariance",
    "classify": "fastbert.inference.classification",
    "compile": "fastbert.graphs",
    "dequantize": "fastbert.fp8",
    "embed": "fastbert.inference.embedding",
    "embed_stream": "fastbert.inference.embedding",
    "explain": "fastbert.routing",
    "fill_mask": "fastbert.inference.masked_words",
    "next_sentence": "fastbert.inference.next_sentence",
    "quantize": "fastbert.fp8",
    "restore": "fastbert.swap",
    "tag": "fastbert.inference.tagging",
    "use_backend": "fastbert.kernels",
    "verify": "fastbert.verification",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fastbert' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
