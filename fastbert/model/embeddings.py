"""The embedding of a batch as rows: ids are packed, then looked up, so that padding costs nothing.

B batch, S sequence, R rows (see `layout`), D hidden size.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbert.kernels import functional
from fastbert.model.fallback.hooks import must_require_grad
from fastbert.model.fallback.plan import embeddings_verdict
from fastbert.model.fallback.verdict import Path
from fastbert.model.inputs import Inputs
from fastbert.model.layer import dropout_p_of
from fastbert.model.padding.layout import Layout


def embed_padded(embeddings: Any, inputs: Inputs, layout: Layout) -> Tensor:
    """(B, S) ids or (B, S, D) embeddings of words -> (R, D)."""
    if not _is_fused(embeddings, inputs):
        return layout.pack(embeddings(**inputs.as_kwargs()))
    batch_size, seqlen = inputs.tokens.shape[:2]
    types, positions = inputs.token_type_ids, inputs.position_ids
    positions = embeddings.position_ids[:, :seqlen] if positions is None else positions
    types = None if types is None else types.expand(batch_size, seqlen)
    padded = replace(inputs, token_type_ids=types, position_ids=positions.expand(batch_size, seqlen))
    return _fused_embedding(embeddings, padded.map(layout.pack))


def embed_rows(embeddings: Any, rows: Inputs) -> Tensor:
    """(R,) ids or (R, D) embeddings of words, with position_ids -> (R, D)."""
    if not _is_fused(embeddings, rows):
        return embeddings(**rows.map(lambda x: x[None]).as_kwargs())[0]
    return _fused_embedding(embeddings, rows)


def _is_fused(embeddings: Any, inputs: Inputs) -> bool:
    return embeddings_verdict(embeddings, with_ids=inputs.inputs_embeds is None).path is Path.FUSED


def _fused_embedding(embeddings: Any, rows: Inputs) -> Tensor:
    """dropout(norm(words + types + positions)), (R, D)."""
    ids, types, positions, embeds = rows.input_ids, rows.token_type_ids, rows.position_ids, rows.inputs_embeds
    type_table, position_table, norm = embeddings.token_type_embeddings, embeddings.position_embeddings, embeddings.LayerNorm
    dropout_p = dropout_p_of(embeddings.dropout)
    assert positions is not None
    if types is None:
        functional.check_ids("position_ids", positions, "position_embeddings", position_table.num_embeddings)
        types = embeddings.token_type_ids[0].index_select(0, positions)
    if embeds is not None:
        functional.check_ids("token_type_ids", types, "token_type_embeddings", type_table.num_embeddings)
        functional.check_ids("position_ids", positions, "position_embeddings", position_table.num_embeddings)
        x = functional.layer_norm(embeds + type_table(types), norm.weight, norm.bias, position_table(positions), eps=norm.eps)
        return F.dropout(x, dropout_p) if dropout_p > 0.0 else x
    assert ids is not None
    word_table = embeddings.word_embeddings
    x = functional.embedding(
        ids,
        types,
        positions,
        word_table.weight,
        type_table.weight,
        position_table.weight,
        norm.weight,
        norm.bias,
        padding_idx=word_table.padding_idx,
        eps=norm.eps,
        dropout_p=dropout_p,
    )
    is_frozen = torch.is_grad_enabled() and not x.requires_grad
    return x.requires_grad_() if is_frozen and must_require_grad(word_table) else x
