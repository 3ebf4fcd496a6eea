"""The input tensors of one call of `BertModel`, and the checks that they fit one another.

B batch, S sequence, T tokens of a batch packed by its caller, D hidden size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor

from fastbert.model.padding.padding_free import given_arguments


@dataclass(frozen=True)
class Inputs:
    """What the embeddings read, each (B, S), (T,) or None; inputs_embeds with D as a further dimension."""

    input_ids: Tensor | None
    token_type_ids: Tensor | None
    position_ids: Tensor | None
    inputs_embeds: Tensor | None

    @property
    def tokens(self) -> Tensor:
        """input_ids, (B, S) or (T,), or inputs_embeds, (B, S, D) or (T, D)."""
        tokens = self.input_ids if self.input_ids is not None else self.inputs_embeds
        assert tokens is not None
        return tokens

    def map(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        """The same inputs with `change` applied to each tensor."""
        return Inputs(**{name: None if value is None else change(value) for name, value in self.as_kwargs().items()})

    def as_kwargs(self) -> dict[str, Tensor | None]:
        return {
            "input_ids": self.input_ids,
            "token_type_ids": self.token_type_ids,
            "position_ids": self.position_ids,
            "inputs_embeds": self.inputs_embeds,
        }


def broadcast_inputs(inputs: Inputs, attention_mask: Any) -> tuple[Inputs, Any]:
    """Expands a mask of shape (S,) or (1, S), and types and positions that broadcast to the batch, to (B, S).

    Shapes that do not fit are left as they are: `check_padded` refuses them.
    """
    tokens = inputs.input_ids if inputs.input_ids is not None else inputs.inputs_embeds
    if not isinstance(tokens, Tensor) or tokens.dim() < 2:
        return inputs, attention_mask
    if torch.jit.is_tracing():  # sizes are tensors there, which are not compared
        if isinstance(attention_mask, Tensor) and attention_mask.dim() in (1, 2):
            attention_mask = attention_mask.expand(tokens.shape[0], -1)
        return inputs, attention_mask
    batch_size, seqlen = tokens.shape[:2]
    if _must_broadcast(inputs.token_type_ids, batch_size, seqlen):
        inputs = replace(inputs, token_type_ids=inputs.token_type_ids.expand(batch_size, seqlen))
    if _must_broadcast(inputs.position_ids, batch_size, seqlen):
        inputs = replace(inputs, position_ids=inputs.position_ids.expand(batch_size, seqlen))
    if isinstance(attention_mask, Tensor) and (_has_shape(attention_mask, seqlen) or _has_shape(attention_mask, 1, seqlen)):
        attention_mask = attention_mask.expand(batch_size, seqlen)
    return inputs, attention_mask


def check_padded(bert: Any, inputs: Inputs, attention_mask: Tensor | None) -> int:
    """Raises ValueError for inputs of a padded batch whose shapes do not fit. Returns S, or 0 in a torch.jit trace."""
    ids, embeds, hidden_size = inputs.input_ids, inputs.inputs_embeds, bert.config.hidden_size
    if ids is not None and ids.dim() != 2:
        raise ValueError(
            f"expected input_ids of shape (batch, seq), or (tokens,) with cu_seqlens and max_seqlen, got {tuple(ids.shape)}"
        )
    if embeds is not None and embeds.dim() != 3:
        raise ValueError(
            f"expected inputs_embeds of shape (batch, seq, {hidden_size}), or (tokens, "
            f"{hidden_size}) with cu_seqlens and max_seqlen, got {tuple(embeds.shape)}"
        )
    if torch.jit.is_tracing():
        return 0  # sizes are tensors there: a comparison would be recorded as it came out
    batch_size, seqlen = inputs.tokens.shape[:2]
    if attention_mask is not None and not _has_shape(attention_mask, batch_size, seqlen):
        raise ValueError(
            f"expected attention_mask of shape ({batch_size}, {seqlen}) like the input, got {tuple(attention_mask.shape)}"
        )
    for name, value in (("token_type_ids", inputs.token_type_ids), ("position_ids", inputs.position_ids)):
        if value is not None and not _has_shape(value, batch_size, seqlen):
            raise ValueError(f"expected {name} of shape ({batch_size}, {seqlen}), got {tuple(value.shape)}")
    return seqlen


def check_packed(
    bert: Any,
    inputs: Inputs,
    attention_mask: Any,
    cu_seqlens: Tensor | None,
    max_seqlen: int | None,
    kwargs: Mapping[str, Any],
) -> tuple[Tensor, int]:
    """Raises ValueError or TypeError for inputs of a batch packed by its caller that do not fit.

    Returns cu_seqlens and max_seqlen.
    """
    given = given_arguments(kwargs)
    if given:
        raise ValueError(f"expected either cu_seqlens and max_seqlen or transformers' own {given[0]}, got both")
    if cu_seqlens is None or max_seqlen is None:
        missing = "cu_seqlens" if cu_seqlens is None else "max_seqlen"
        raise ValueError(f"expected cu_seqlens and max_seqlen together for a packed input, got no {missing}")
    if attention_mask is not None:
        raise ValueError("expected no attention_mask beside cu_seqlens: a packed input holds real tokens only")
    if not isinstance(cu_seqlens, Tensor):
        raise TypeError(f"expected cu_seqlens as an int32 tensor, got {type(cu_seqlens).__name__}")
    if isinstance(max_seqlen, Tensor) or not isinstance(max_seqlen, (int, torch.SymInt)) or isinstance(max_seqlen, bool):
        raise TypeError(f"expected max_seqlen as an int, got {type(max_seqlen).__name__}")
    ids, embeds = inputs.input_ids, inputs.inputs_embeds
    if ids is not None and ids.dim() != 1:
        raise ValueError(f"expected input_ids of shape (tokens,) with cu_seqlens, got {tuple(ids.shape)}")
    if embeds is not None and embeds.dim() != 2:
        size = bert.config.hidden_size
        raise ValueError(f"expected inputs_embeds of shape (tokens, {size}) with cu_seqlens, got {tuple(embeds.shape)}")
    if torch.jit.is_tracing():
        return cu_seqlens, max_seqlen
    total = inputs.tokens.shape[0]
    for name, value in (("token_type_ids", inputs.token_type_ids), ("position_ids", inputs.position_ids)):
        if value is not None and tuple(value.shape) != (total,):
            raise ValueError(f"expected {name} of shape ({total},) with cu_seqlens, got {tuple(value.shape)}")
    check_sizes(bert, inputs, max_seqlen)
    return cu_seqlens, max_seqlen


def check_sizes(bert: Any, inputs: Inputs, longest: int) -> None:
    """Raises ValueError for another hidden size, or where the longest sequence exceeds the table of positions.

    longest: in tokens; not checked where the caller gives positions, or where a user's embeddings have no such table.
    """
    embeds, hidden_size = inputs.inputs_embeds, bert.config.hidden_size
    if embeds is not None and embeds.shape[-1] != hidden_size:
        raise ValueError(f"expected inputs_embeds of hidden size {hidden_size}, got {embeds.shape[-1]}")
    if inputs.position_ids is not None or not hasattr(bert.embeddings, "position_ids"):
        return
    limit = bert.embeddings.position_ids.shape[-1]
    if longest > limit:
        raise ValueError(f"expected sequences of at most {limit} tokens (max_position_embeddings), got {longest}")


def fitting_positions(positions: Tensor | None, tokens: Tensor) -> Tensor | None:
    """positions, bool (B, S), on the device of the tokens; None where its shape does not fit: that loss raises later."""
    if positions is None or not (torch.jit.is_tracing() or positions.shape == tokens.shape[:2]):
        return None
    return positions.to(tokens.device)


def _must_broadcast(x: Tensor | None, batch_size: int, seqlen: int) -> TypeGuard[Tensor]:
    """Whether x has another shape than (B, S) but broadcasts to it."""
    if x is None or x.dim() > 2 or _has_shape(x, batch_size, seqlen):
        return False
    return all(size == 1 or size == wanted for size, wanted in zip(x.shape[::-1], (seqlen, batch_size)))


def _has_shape(x: Tensor, *sizes: int) -> bool:
    """Compared size by size: torch.compile does not compare whole shapes of sizes that it keeps open."""
    return x.dim() == len(sizes) and all(size == wanted for size, wanted in zip(x.shape, sizes))
