"""What a head passes to its BertModel: the inputs, who calls, and which positions its loss reads."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from fastbert.model.bert import BertModel, berts
from fastbert.model.fallback.parts import unwrap
from fastbert.model.padding.policy import Caller


def bert_inputs(
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
    position_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    cu_seqlens: Tensor | None,
    max_seqlen: int | None,
) -> dict[str, Any]:
    """The arguments of the BertModel inside; cu_seqlens and max_seqlen only where the caller gives one of them."""
    inputs: dict[str, Any] = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": token_type_ids,
        "position_ids": position_ids,
        "inputs_embeds": inputs_embeds,
    }
    if cu_seqlens is not None or max_seqlen is not None:
        inputs |= {"cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen}
    return inputs


def declare(head: nn.Module, caller: Caller, loss_positions: Tensor | None = None) -> dict[str, Any]:
    """What the head declares to the BertModel inside: who calls, and the positions that its loss reads, bool (B, S).

    Empty where a user's module replaces the BertModel and its forward takes no more than transformers passes to it.
    Raises TypeError where that module contains a BertModel of fastbert whose states at padding the loss may read.
    """
    declared: dict[str, Any] = {"caller": caller}
    if loss_positions is not None:
        declared["loss_positions"] = loss_positions
    inside: Any = head.bert
    bert = unwrap(getattr(inside, "_orig_mod", inside))  # torch.compile keeps the module there
    if (isinstance(bert, BertModel) and type(bert).forward is BertModel.forward) or _accepts(type(bert), tuple(declared)):
        return declared
    if loss_positions is not None and any(berts(bert)):
        raise TypeError(
            f"expected a forward of {type(bert).__name__} that takes **kwargs and passes them on to the BertModel inside, "
            "which must know where the loss reads padding, got one without"
        )
    return {}


def _accepts(cls: type[nn.Module], names: tuple[str, ...]) -> bool:
    parameters = inspect.signature(cls.forward).parameters
    return all(name in parameters for name in names) or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def token_caller(head: nn.Module, with_loss: bool) -> Caller:
    """What a head of tokens is called as. with_loss: whether it computes a loss in this call."""
    if with_loss or not head.training:
        return Caller.TOKEN_HEAD
    return Caller.TOKEN_HEAD_WITHOUT_LOSS


def is_padded(inputs: dict[str, Any]) -> bool:
    """Whether `bert_inputs` are those of a padded batch."""
    return "cu_seqlens" not in inputs


def outputs_at(labelled: Tensor) -> dict[str, Tensor]:
    """Asks the BertModel for the states at labelled positions alone; while tracing, when their number is unknown, for all."""
    return {} if torch.compiler.is_compiling() else {"output_positions": labelled}
