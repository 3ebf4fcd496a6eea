"""transformers' padding-free form: several sequences in one row, which flash attention keeps apart.

`DataCollatorWithFlattening`, and sentence-transformers with flash attention, call a model with ids of shape (1, T) and either
cu_seq_lens_q, cu_seq_lens_k, max_length_q and max_length_k, or position_ids that start again with each sequence, or both.
transformers keeps such sequences apart under a flash attention setting only; so does `boundaries_of_call`.

B rows, S their length, D hidden size.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastbert.model import calls
from fastbert.model.fallback.plan import is_flash_attention
from fastbert.model.fallback.verdict import Path, Verdict
from fastbert.model.padding.layout import values_hidden

VARLEN_ARGUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


class Boundaries(NamedTuple):
    """Where the sequences of a call begin.

    cu_seqlens: int32 (sequences + 1,), over the rows one after the other. max_seqlen: at least the longest. source: the
    argument from which they are known.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    source: str


def given_arguments(kwargs: Mapping[str, Any]) -> list[str]:
    """Those of VARLEN_ARGUMENTS that a call has."""
    return [name for name in VARLEN_ARGUMENTS if kwargs.get(name) is not None]


def boundaries_of_call(
    model: Any, tokens: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, kwargs: Mapping[str, Any]
) -> Boundaries | Verdict | None:
    """The boundaries that transformers would respect; None, with a warning, where its attention would ignore them.

    tokens: (B, S) or (B, S, D). attention_mask: (B, S). position_ids: (B, S) or (1, S). kwargs: of the call.
    Returns a verdict where only transformers can handle the call. Raises as `find_boundaries`.
    """
    given = given_arguments(kwargs)
    if not given and position_ids is None:
        return None
    name = model.config._attn_implementation
    if is_flash_attention(name):
        return find_boundaries(tokens, attention_mask, position_ids, kwargs)
    ignored = ", ".join(given)
    if not given and position_ids is not None and position_ids.shape[0] == tokens.shape[0] == 1 and attention_mask is None:
        readable = not (values_hidden(position_ids) or calls.has_warned(model, "position_ids"))
        if readable and positions_start_again(position_ids):
            ignored = "position_ids"
    if ignored:
        calls.warn_once(
            model,
            ignored,
            f"{ignored} of a padding-free batch: with {name} attention, transformers' BERT lets all tokens of a row attend "
            "to one another, and fastbert gives the same answer. To keep sequences apart use a flash attention setting, or "
            "pass fastbert's cu_seqlens and max_seqlen with ids of shape (tokens,).",
        )
    return None


def find_boundaries(
    tokens: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, kwargs: Mapping[str, Any]
) -> Boundaries | Verdict | None:
    """The boundaries of a call under flash attention; None where it has none; a verdict where transformers must decide.

    Reads values once, in one transfer to the host, and only if the call could be padding-free.
    Raises ValueError or TypeError for boundaries that contradict one another or the input.
    """
    given = given_arguments(kwargs)
    if given:
        return _from_lengths(tokens, attention_mask, kwargs, given)
    if position_ids is None or tokens.shape[0] != 1 or position_ids.dim() != 2 or position_ids.numel() == 0:
        return None
    return _from_positions(attention_mask, position_ids)


def check_one_sequence_per_row(boundaries: Boundaries, batch_size: int) -> None:
    """Raises ValueError where a head that pools the first token of each row would answer for several sequences at once."""
    number = boundaries.cu_seqlens.shape[0] - 1
    if number > batch_size:
        raise ValueError(
            f"expected one sequence a row, got {number} in {batch_size} (by {boundaries.source}): this head reads the first "
            "token of a row only. Pass cu_seqlens and max_seqlen with ids of shape (tokens,) for an answer per sequence"
        )


def positions_start_again(position_ids: Tensor) -> bool:
    """Whether a row's positions are not consecutive numbers. Reads values."""
    return bool((position_ids.diff() != 1).any())


def _from_lengths(
    tokens: Tensor, attention_mask: Tensor | None, kwargs: Mapping[str, Any], given: list[str]
) -> Boundaries | Verdict:
    missing = [name for name in VARLEN_ARGUMENTS if name not in given]
    if missing:
        raise ValueError(f"expected {', '.join(VARLEN_ARGUMENTS)} together, got no {', '.join(missing)}")
    starts_q, starts_k, longest_q, longest_k = (kwargs[name] for name in VARLEN_ARGUMENTS)
    for name, value in (("cu_seq_lens_q", starts_q), ("cu_seq_lens_k", starts_k)):
        if not isinstance(value, Tensor):
            raise TypeError(f"expected {name} as an int32 tensor, got {type(value).__name__}")
        if value.dim() != 1 or value.numel() < 2 or value.is_floating_point():
            raise ValueError(f"expected {name} of shape (sequences + 1,), int32, got {tuple(value.shape)}, {value.dtype}")
    total = tokens.shape[0] * tokens.shape[1]
    if values_hidden(tokens) or values_hidden(starts_q):
        if attention_mask is not None:
            return Verdict(Path.TRANSFORMERS, "an attention_mask beside cu_seq_lens_q while tracing")
        return Boundaries(starts_q.to(tokens.device, torch.int32), max(int(longest_q), int(longest_k)), "cu_seq_lens")
    if starts_q.shape != starts_k.shape:
        raise ValueError(
            f"expected cu_seq_lens_q and cu_seq_lens_k of one shape, got {tuple(starts_q.shape)} and {tuple(starts_k.shape)}"
        )
    lengths = starts_q.diff()
    none = lengths.new_zeros(())
    differ, first, last, shortest, longest, masked = torch.stack(
        [
            (starts_q != starts_k.to(starts_q.device)).any().to(lengths.dtype),
            starts_q[0],
            starts_q[-1],
            lengths.amin(),
            lengths.amax(),
            none if attention_mask is None else (attention_mask == 0).any().to(starts_q.device, lengths.dtype),
        ]
    ).tolist()
    if masked:
        return Verdict(Path.TRANSFORMERS, "an attention_mask with padding beside cu_seq_lens_q")
    if differ:
        raise ValueError("expected cu_seq_lens_q and cu_seq_lens_k to be equal: tokens attend to their own sequence")
    if first != 0 or last != total or shortest < 0:
        raise ValueError(
            f"expected cu_seq_lens_q to rise from 0 to the {total} tokens of the input, got {first} to {last}"
            + (", falling in between" if shortest < 0 else "")
        )
    for name, value in (("max_length_q", longest_q), ("max_length_k", longest_k)):
        if int(value) < longest:
            raise ValueError(f"expected {name} of at least {longest}, the longest sequence of cu_seq_lens_q, got {int(value)}")
    return Boundaries(starts_q.to(tokens.device, torch.int32), longest, "cu_seq_lens")


def _from_positions(attention_mask: Tensor | None, position_ids: Tensor) -> Boundaries | Verdict | None:
    if values_hidden(position_ids):
        return Verdict(
            Path.TRANSFORMERS, "position_ids under flash attention while tracing: where they start again is not known"
        )
    row = position_ids[0]
    starts = row == row.min()
    values = [(row.diff() != 1).sum(), starts[0].long(), starts.sum()]
    values.append(row.new_zeros(()) if attention_mask is None else (attention_mask == 0).any().long().to(row.device))
    breaks, begins, count, masked = torch.stack([value.to(torch.int64) for value in values]).tolist()
    if breaks == 0 or masked:  # one sequence; or transformers removes the padding and keeps the rest together
        return None
    if not begins:
        raise ValueError(
            "expected position_ids that begin with their smallest value, as every sequence of a padding-free row does, "
            f"got {row[:8].tolist()}{'...' if row.numel() > 8 else ''}"
        )
    first = torch.nonzero_static(starts, size=count).squeeze(1)
    cu_seqlens = torch.cat([first, first.new_tensor([row.numel()])]).to(torch.int32)
    return Boundaries(cu_seqlens, int(cu_seqlens.diff().amax()), "position_ids")
