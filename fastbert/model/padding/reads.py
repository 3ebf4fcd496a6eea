"""What one call reads at padding positions, by its plan: whether it falls back, what is recorded, and who is warned."""

from typing import Any

import torch
from torch import Tensor, nn

from fastbert.kernels.backend import records_portably
from fastbert.model import calls
from fastbert.model.fallback.hooks import find_global_hook, is_touched
from fastbert.model.fallback.verdict import FUSED, Path, Verdict
from fastbert.model.padding.layout import Plan
from fastbert.model.padding.policy import DEFAULT, Caller, policy_of

LOSS_READS_PADDING = "a loss reads padding positions"
_READERS = "readers of padding"  # the reason of a warning


def must_be_exact(bert: Any, caller: Caller | None, kwargs: dict[str, Any]) -> bool:
    """Whether padding positions of this call must hold transformers' values: the policy says so, and someone can see them.

    Nobody can where a head reads the pooled state alone, returns no hidden states, and no hook looks into the model.
    """
    if not policy_of(bert).exact:
        return False
    if caller is not Caller.POOLED_HEAD or torch.compiler.is_compiling():
        return True
    if kwargs.get("output_hidden_states", getattr(bert.config, "output_hidden_states", False)):
        return True
    return find_global_hook() is not None or any(map(is_touched, bert.modules()))


def padding_verdict(bert: Any, plan: Plan) -> Verdict:
    """Whether a call falls back because padding positions are read: what those attend to differs between attention functions.

    Rows of fastbert's attend as under SDPA, without a causal order.
    """
    if not plan.padding_read:
        return FUSED
    if bert.config.is_decoder:
        return Verdict(Path.TRANSFORMERS, "padding positions of a decoder are read")
    if plan.traced and not plan.loss_reads_padding and not records_portably():
        return FUSED
    name = bert.config._attn_implementation
    if name in ("sdpa", None) or (name == "eager" and not plan.has_empty):
        return FUSED
    return Verdict(Path.TRANSFORMERS, f"padding positions are read as {name} attention computes them")


def record_plan(bert: nn.Module, plan: Plan) -> None:
    """Records the path of a packed call for `explain`; warns once where a loss makes it compute padding."""
    if plan.traced:
        calls.record_path(bert, "every position is a row; tracing: shapes must not depend on values")
    elif plan.loss_reads_padding and policy_of(bert).exact:
        calls.record_path(bert, f"every position is a row; padding is {policy_of(bert)}")
    elif plan.loss_reads_padding:
        calls.record_path(bert, f"every position is a row; {LOSS_READS_PADDING}")
        message = f"fastbert computes padding positions too: {LOSS_READS_PADDING}. See fastbert.explain."
        calls.warn_once(bert, LOSS_READS_PADDING, message)
    elif plan.padding_read:
        calls.record_path(bert, "packed, with the first positions that are padding but read by the pooler")
    else:
        calls.record_path(bert, "packed" if plan.layout.indices is not None else "packed; no padding in the batch")


def tokens_to_check(bert: Any, ids: Tensor | None, keep: Tensor | None, caller: Caller | None) -> Tensor | None:
    """bool (B, S), True where the token is not the padding token; None where a warning does not depend on it."""
    pad = bert.config.pad_token_id
    if caller is not None or keep is None or ids is None or pad is None or torch.compiler.is_compiling():
        return None
    if policy_of(bert) is not DEFAULT or calls.has_warned(bert, _READERS):
        return None
    return ids != pad


def warn_of_readers(bert: nn.Module, plan: Plan, caller: Caller | None) -> None:
    """Warns once that padding holds zeros, where code that did not choose so may read them."""
    if plan.layout.keep is None or plan.loss_reads_padding or policy_of(bert).chosen:
        return
    if plan.traced and not torch.compiler.is_dynamo_compiling():
        return
    if plan.tokens_at_padding:
        reason = "tokens other than padding are where attention_mask is 0, as in retrieval models that read their states"
    elif not torch.is_grad_enabled():
        return
    elif caller is None:
        reason = "the encoder is called with gradients, and what is trained on its states may read them"
    elif caller is Caller.TOKEN_HEAD_WITHOUT_LOSS:
        reason = "the head is called in training without labels, and a loss of your own may read its logits there"
    else:
        return
    calls.warn_once(
        bert,
        _READERS,
        f"fastbert leaves zeros at padding positions (attention_mask 0), where transformers computes states: {reason}. "
        "If padding is read, pass padding='exact' to the class, to from_pretrained or to fastbert.accelerate; "
        "padding='zeros' silences this warning.",
    )
