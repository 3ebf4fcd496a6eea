"""fastbert: transformers' BERT classes on packed tokens and hand-written Triton kernels, verified.

Every name that transformers exports for BERT is here: the models are fastbert's, `BertConfig` and the tokenizers are
transformers' own. The names of `transformers.models.bert.modeling_bert` are in `fastbert.modeling_bert`.
`accelerate` swaps a model that is already built, `register` every one that transformers will build; `explain` tells what runs
each part of a model, `verify` compares a checkpoint in both libraries.

The packages, from the bottom up: `kernels` (in the folder `kernels/` of a checkout), `utils`, `data`, `tasks`, `training`,
`model`, then `pretraining`, `finetuning`, `inference` and `deploy` beside each other, `verification`, `cli`. Each package's
docstring lists its files in reading order.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from fastbert.version import __version__ as __version__

if TYPE_CHECKING:  # the table below, for type checkers and editors; a test compares the two
    from transformers import BasicTokenizer as BasicTokenizer
    from transformers import BertConfig as BertConfig
    from transformers import BertTokenizer as BertTokenizer
    from transformers import BertTokenizerFast as BertTokenizerFast
    from transformers import BertTokenizerLegacy as BertTokenizerLegacy
    from transformers import WordpieceTokenizer as WordpieceTokenizer

    from fastbert.deploy.fp8 import dequantize as dequantize
    from fastbert.deploy.fp8 import quantize as quantize
    from fastbert.deploy.graphs import compile as compile
    from fastbert.inference.answering import answer as answer
    from fastbert.inference.classification import classify as classify
    from fastbert.inference.embedding import embed as embed
    from fastbert.inference.embedding import embed_stream as embed_stream
    from fastbert.inference.encoder import Encoder as Encoder
    from fastbert.inference.masked_words import fill_mask as fill_mask
    from fastbert.inference.next_sentence import next_sentence as next_sentence
    from fastbert.inference.ranking import rank as rank
    from fastbert.inference.residents import clear_cache as clear_cache
    from fastbert.inference.tagging import tag as tag
    from fastbert.kernels import use_backend as use_backend
    from fastbert.model.batch_invariance import batch_invariant as batch_invariant
    from fastbert.model.bert import BertModel as BertModel
    from fastbert.model.bert import BertPreTrainedModel as BertPreTrainedModel
    from fastbert.model.construction import register as register
    from fastbert.model.construction import unregister as unregister
    from fastbert.model.explain import explain as explain
    from fastbert.model.heads import BertForMaskedLM as BertForMaskedLM
    from fastbert.model.heads import BertForMultipleChoice as BertForMultipleChoice
    from fastbert.model.heads import BertForNextSentencePrediction as BertForNextSentencePrediction
    from fastbert.model.heads import BertForPreTraining as BertForPreTraining
    from fastbert.model.heads import BertForQuestionAnswering as BertForQuestionAnswering
    from fastbert.model.heads import BertForSequenceClassification as BertForSequenceClassification
    from fastbert.model.heads import BertForTokenClassification as BertForTokenClassification
    from fastbert.model.heads import BertLMHeadModel as BertLMHeadModel
    from fastbert.model.layer import BertLayer as BertLayer
    from fastbert.model.swap import accelerate as accelerate
    from fastbert.model.swap import restore as restore
    from fastbert.verification.compare import verify as verify

# The module of each name. `import fastbert` loads none of them; the first use of a name loads its module.
_MODULES = {
    "BasicTokenizer": "transformers",
    "BertConfig": "transformers",
    "BertForMaskedLM": "fastbert.model.heads",
    "BertForMultipleChoice": "fastbert.model.heads",
    "BertForNextSentencePrediction": "fastbert.model.heads",
    "BertForPreTraining": "fastbert.model.heads",
    "BertForQuestionAnswering": "fastbert.model.heads",
    "BertForSequenceClassification": "fastbert.model.heads",
    "BertForTokenClassification": "fastbert.model.heads",
    "BertLMHeadModel": "fastbert.model.heads",
    "BertLayer": "fastbert.model.layer",
    "BertModel": "fastbert.model.bert",
    "BertPreTrainedModel": "fastbert.model.bert",
    "BertTokenizer": "transformers",
    "BertTokenizerFast": "transformers",
    "BertTokenizerLegacy": "transformers",
    "Encoder": "fastbert.inference.encoder",
    "WordpieceTokenizer": "transformers",
    "accelerate": "fastbert.model.swap",
    "answer": "fastbert.inference.answering",
    "batch_invariant": "fastbert.model.batch_invariance",
    "classify": "fastbert.inference.classification",
    "clear_cache": "fastbert.inference.residents",
    "compile": "fastbert.deploy.graphs",
    "dequantize": "fastbert.deploy.fp8",
    "embed": "fastbert.inference.embedding",
    "embed_stream": "fastbert.inference.embedding",
    "explain": "fastbert.model.explain",
    "fill_mask": "fastbert.inference.masked_words",
    "next_sentence": "fastbert.inference.next_sentence",
    "quantize": "fastbert.deploy.fp8",
    "rank": "fastbert.inference.ranking",
    "register": "fastbert.model.construction",
    "restore": "fastbert.model.swap",
    "tag": "fastbert.inference.tagging",
    "unregister": "fastbert.model.construction",
    "use_backend": "fastbert.kernels",
    "verify": "fastbert.verification.compare",
}

if not TYPE_CHECKING:  # with __getattr__ in sight, a type checker would accept any name
    __all__ = ["__version__", *_MODULES]

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module 'fastbert' has no attribute {name!r}{_hint(name)}")
        value = getattr(importlib.import_module(_MODULES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])


def _hint(name: str) -> str:
    """Where a part of BERT is that transformers does not export at its top level either."""
    if name.startswith("Bert") and hasattr(importlib.import_module("fastbert.modeling_bert"), name):
        return "; it is in fastbert.modeling_bert, as in transformers.models.bert.modeling_bert"
    return ""


def _is_the_command() -> bool:
    """Whether this import begins the command `fastbert`, or `python -m fastbert`, whose mistakes are one line."""
    name = sys.argv[0] if sys.argv else ""
    return os.path.basename(name) == "fastbert" or (name == "-m" and "fastbert" in sys.orig_argv)


if os.environ.get("FASTBERT_REGISTER", "") not in ("", "0"):  # else importing fastbert imports nothing
    from fastbert.model.construction import register_from_environment as _register_from_environment

    try:
        _register_from_environment(os.environ["FASTBERT_REGISTER"])
    except ValueError as _error:
        if not _is_the_command():
            raise
        sys.stderr.write(f"fastbert: {_error}\n")
        raise SystemExit(2) from None
