"""`Encoder`: a checkpoint that stays in memory, with every task of inference as a method."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import nn

from fastbert.utils.checkpoints import CLASS_NAMES, open_checkpoint

from . import answering, classification, embedding, masked_words, next_sentence, ranking, tagging
from .answering import Found
from .classification import Labels
from .loading import name_of, resolve
from .masked_words import Fills
from .residents import Resident


class Encoder:
    """A BERT checkpoint that stays in memory, for services and notebooks: `Encoder("my-model").classify(texts)`.

    Every method takes texts and options as the function of its name does, and gives the same results. The weights are read at
    the first call of a task, once for each class: a checkpoint may serve `embed` and `fill_mask` with two. They stay as they
    were then, whatever happens on the disk. Any number of threads may call one Encoder; each call runs its own batches.

    model: a name or a folder; or (model, tokenizer), a SentenceTransformer or a CrossEncoder, of fastbert's classes (see
        `fastbert.accelerate`) and in eval mode. A given model is used as it is, not copied. Of an object of
        sentence-transformers prompts, limit and the modules after the encoder are those of now.
    device, dtype: the model's; None for CUDA in bfloat16 if there is one, else CPU in float32. Not beside a given model.
    batch_tokens: most tokens of one forward; None for 4,096 on a CPU, 32,768 on a GPU.
    Raises InputError for what is no BERT checkpoint, and for a given model that cannot be used.
    """

    def __init__(
        self,
        model: str | Path | tuple[Any, Any] | nn.Module,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        self._resident = Resident(model, device, dtype)
        self._batch_tokens = batch_tokens
        if isinstance(model, str | Path):
            self.name = str(model)
            open_checkpoint(self.name).require_tokenizer()
            self.device, self.dtype = resolve(device, dtype)
        else:
            given = self._resident.given(CLASS_NAMES)
            self.name, self.device, self.dtype = name_of(given.model), given.device, given.model.dtype

    def __repr__(self) -> str:
        return f"Encoder({self.name!r}, device={str(self.device)!r}, dtype={self.dtype})"

    def embed(
        self,
        texts: str | Iterable[str],
        *,
        pooling: str | None = None,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        output_dtype: str = "float32",
        long: str = "truncate",
    ) -> np.ndarray:
        """The vector of each text, see `fastbert.embed`."""
        return embedding.embed(
            texts,
            self._resident,
            pooling=pooling,
            normalize=normalize,
            truncate_dim=truncate_dim,
            prompt=prompt,
            prompt_name=prompt_name,
            output_dtype=output_dtype,
            long=long,
            batch_tokens=self._batch_tokens,
        )

    def embed_stream(
        self,
        texts: Iterable[str],
        *,
        pooling: str | None = None,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        output_dtype: str = "float32",
        long: str = "truncate",
    ) -> Iterator[np.ndarray]:
        """The vectors one by one, in bounded memory, see `fastbert.embed_stream`."""
        return embedding.embed_stream(
            texts,
            self._resident,
            pooling=pooling,
            normalize=normalize,
            truncate_dim=truncate_dim,
            prompt=prompt,
            prompt_name=prompt_name,
            output_dtype=output_dtype,
            long=long,
            batch_tokens=self._batch_tokens,
        )

    @overload
    def classify(  # type: ignore[overload-overlap]  # a str is an Iterable[str] too
        self, texts: str | tuple[str, str], *, top: int | None = ..., long: str = ..., max_length: int | None = ...
    ) -> Labels: ...

    @overload
    def classify(
        self,
        texts: Iterable[str | tuple[str, str]],
        *,
        top: int | None = ...,
        long: str = ...,
        max_length: int | None = ...,
    ) -> list[Labels]: ...

    def classify(
        self,
        texts: str | tuple[str, str] | Iterable[str | tuple[str, str]],
        *,
        top: int | None = 1,
        long: str = "truncate",
        max_length: int | None = None,
    ) -> list[Labels] | Labels:
        """The likeliest labels of each text or pair of texts, see `fastbert.classify`."""
        return classification.classify(
            texts, self._resident, top=top, long=long, max_length=max_length, batch_tokens=self._batch_tokens
        )

    def rank(
        self,
        query: str,
        texts: Iterable[str],
        *,
        top: int | None = None,
        long: str = "truncate",
        max_length: int | None = None,
    ) -> list[dict[str, Any]]:
        """The texts by how well they answer the query, see `fastbert.rank`."""
        return ranking.rank(
            query, texts, self._resident, top=top, long=long, max_length=max_length, batch_tokens=self._batch_tokens
        )

    @overload
    def tag(  # type: ignore[overload-overlap]
        self, texts: str, *, max_length: int | None = ..., stride: int | None = ..., characters: bool | None = ...
    ) -> dict[str, Any]: ...

    @overload
    def tag(
        self, texts: Iterable[str], *, max_length: int | None = ..., stride: int | None = ..., characters: bool | None = ...
    ) -> list[dict[str, Any]]: ...

    def tag(
        self,
        texts: str | Iterable[str],
        *,
        max_length: int | None = None,
        stride: int | None = None,
        characters: bool | None = None,
    ) -> list[dict[str, Any]] | dict[str, Any]:
        """Words, tags and entities of each text, see `fastbert.tag`."""
        return tagging.tag(
            texts,
            self._resident,
            max_length=max_length,
            stride=stride,
            characters=characters,
            batch_tokens=self._batch_tokens,
        )

    @overload
    def answer(  # type: ignore[overload-overlap]
        self,
        questions: str,
        contexts: str,
        *,
        top: int = ...,
        null_threshold: float | Literal["saved"] | None = ...,
        max_length: int | None = ...,
        stride: int | None = ...,
        max_answer_length: int | None = ...,
    ) -> Found: ...

    @overload
    def answer(
        self,
        questions: Iterable[str],
        contexts: Iterable[str],
        *,
        top: int = ...,
        null_threshold: float | Literal["saved"] | None = ...,
        max_length: int | None = ...,
        stride: int | None = ...,
        max_answer_length: int | None = ...,
    ) -> list[Found]: ...

    def answer(
        self,
        questions: str | Iterable[str],
        contexts: str | Iterable[str],
        *,
        top: int = 1,
        null_threshold: float | Literal["saved"] | None = "saved",
        max_length: int | None = None,
        stride: int | None = None,
        max_answer_length: int | None = None,
    ) -> list[Found] | Found:
        """The best answers to each question in its context, see `fastbert.answer`."""
        return answering.answer(
            questions,
            contexts,
            self._resident,
            top=top,
            null_threshold=null_threshold,
            max_length=max_length,
            stride=stride,
            max_answer_length=max_answer_length,
            batch_tokens=self._batch_tokens,
        )

    @overload
    def fill_mask(self, texts: str, *, top: int = ...) -> Fills: ...  # type: ignore[overload-overlap]

    @overload
    def fill_mask(self, texts: Iterable[str], *, top: int = ...) -> list[Fills]: ...

    def fill_mask(self, texts: str | Iterable[str], *, top: int = 5) -> list[Fills] | Fills:
        """The likeliest tokens at each mask of each text, see `fastbert.fill_mask`."""
        return masked_words.fill_mask(texts, self._resident, top=top, batch_tokens=self._batch_tokens)

    @overload
    def next_sentence(self, pairs: tuple[str, str], *, long: str = ...) -> float: ...

    @overload
    def next_sentence(self, pairs: Iterable[tuple[str, str]], *, long: str = ...) -> list[float]: ...

    def next_sentence(
        self, pairs: tuple[str, str] | Iterable[tuple[str, str]], *, long: str = "truncate"
    ) -> list[float] | float:
        """The probability that B follows A, for each pair (A, B), see `fastbert.next_sentence`."""
        return next_sentence.next_sentence(pairs, self._resident, long=long, batch_tokens=self._batch_tokens)
