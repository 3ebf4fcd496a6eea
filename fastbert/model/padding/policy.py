"""What padding positions of the output hold, and who may read them.

By default they hold zeros, which saves their computation; with padding="exact" they hold what transformers computes there. A
reader of padding is whatever takes a state or a logit from a position where attention_mask is 0: a convolution on top, a mean
that ignores the mask, a retrieval model whose queries are filled up with [MASK] tokens.
"""

import enum
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel
from transformers.models.bert import modeling_bert as hf

from fastbert.kernels.backend import records_portably
from fastbert.model import calls
from fastbert.model.fallback.verdict import FUSED, Path, Verdict
from fastbert.model.padding.layout import Plan
from fastbert.model.registry import REPLACEMENTS

CHOICES = ("zeros", "exact")
LOSS_READS_PADDING = "a loss reads padding positions"
_READERS = "readers of padding"  # the reason of a warning


class Caller(enum.Enum):
    """Heads that call a BertModel, by what they read at padding. Any other caller may read any state."""

    POOLED_HEAD = enum.auto()  # a head that reads the pooled state only
    TOKEN_HEAD = enum.auto()  # a head that declares which positions its loss reads
    TOKEN_HEAD_WITHOUT_LOSS = enum.auto()  # the same without labels: a user's loss may read its logits


class PaddingPolicy(NamedTuple):
    """exact: padding positions hold transformers' values. reason: who decided. chosen: by the user, who needs no warning."""

    exact: bool = False
    reason: str = "the default"
    chosen: bool = False

    def __str__(self) -> str:
        return f"{'exact' if self.exact else 'zeros'} ({self.reason})"


DEFAULT = PaddingPolicy()


def policy_from_option(padding: str | None, where: str) -> PaddingPolicy | None:
    """The policy of an option `padding`, or None where it is left open. Raises ValueError for another value."""
    if padding is None:
        return None
    if padding not in CHOICES:
        raise ValueError(f"{where}: expected padding 'zeros' or 'exact', got {padding!r}")
    return PaddingPolicy(padding == "exact", f"padding={padding!r}", True)


def policy_of(bert: nn.Module) -> PaddingPolicy:
    return getattr(bert, "_padding_policy", DEFAULT)


def set_policy(bert: nn.Module, policy: PaddingPolicy | None) -> None:
    """Kept in the instance, so that copies and pickles have it; no parameter or config changes, so no checkpoint has it."""
    if policy is None:
        bert.__dict__.pop("_padding_policy", None)
    else:
        bert.__dict__["_padding_policy"] = policy


def choose_padding(model: nn.Module, chosen: PaddingPolicy | None, where: str) -> None:
    """Sets the policy of every BertModel inside `model`: the user's choice, else what the modules around it need.

    Warns where those need exact values, in a message that begins with `where`.
    """
    policy = chosen or surrounding_policy(model)
    if policy is None:
        return
    changed = False
    for part in model.modules():
        if type(part) is REPLACEMENTS[hf.BertModel] and (chosen or not policy_of(part).chosen):
            changed = changed or policy_of(part) != policy
            set_policy(part, policy)
    if changed and policy.exact and chosen is None:
        warnings.warn(
            f"{where}: padding positions hold transformers' values (padding='exact'), since {policy.reason}. "
            "Where it respects the mask, fastbert.accelerate(model, padding='zeros') saves their computation.",
            UserWarning,
            stacklevel=3,
        )


# What one call reads at padding positions, by its plan.


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


# Modules that combine the states of several tokens, whatever the mask says.
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_CONVOLUTIONS = (nn.modules.conv._ConvNd,)
_POOLS = (
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._LPPoolNd,
)
_OVER_TOKENS = (nn.Flatten, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
_ATTENTION = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_ATTENTION_NAMES = ("attention", "attn")
_RETRIEVAL_NAMES = ("colbert", "multivectorencoder", "lateinteraction", "dprreader")
# Modules of sentence-transformers that read states under the mask only, or whole vectors of sentences.
_MASKED_READERS = frozenset(
    "CrossEncoder Dense Dropout LayerNorm LogitScore MLMTransformer Normalize Pooling SentenceTransformer SparseEncoder "
    "SpladePooling Transformer".split()
)


def surrounding_policy(model: nn.Module) -> PaddingPolicy | None:
    """What the modules around a BertModel need: exact where one reads token states regardless of the mask, zeros where all
    are known to respect it, None where neither is known."""
    named = [(name, part) for name, part in _around(model) if not isinstance(part, hf.BertModel)]
    around = [part for _, part in named]
    for name, part in named:
        reader = _reads_padding(name, part)
        if reader is not None:
            return PaddingPolicy(True, f"{reader} reads token states", False)
    library = [part for part in around if _library(part) == "sentence_transformers"]
    if library and all(type(part).__name__ in _MASKED_READERS for part in library):
        if all(_library(part) in ("sentence_transformers", "torch", "transformers", "fastbert") for part in around):
            return PaddingPolicy(False, "sentence-transformers reads states under the mask", True)
    return None


def _around(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules of model that are not inside a BertModel, nor in a model beside it (a vision tower, say), each with the
    attribute that holds it."""
    found: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()

    def visit(name: str, part: nn.Module) -> None:
        if id(part) in seen or _beside(part):
            return
        seen.add(id(part))
        found.append((name, part))
        if not isinstance(part, hf.BertModel):
            for child_name, child in part.named_children():
                visit(child_name, child)

    visit("", model)
    return found


def _beside(part: nn.Module) -> bool:
    return isinstance(part, PreTrainedModel) and not any(isinstance(inner, hf.BertModel) for inner in part.modules())


def _reads_padding(attribute: str, part: nn.Module) -> str | None:
    names = [cls.__name__ for cls in type(part).__mro__]
    name = type(part).__name__
    if any(known in one.lower() for one in names for known in _RETRIEVAL_NAMES):
        return f"the retrieval model {name}"
    if isinstance(part, (*_RECURRENT, *_CONVOLUTIONS, *_POOLS, *_OVER_TOKENS, *_ATTENTION)):
        return f"the module {name}"
    if any(known in one.lower() for one in names for known in _ATTENTION_NAMES):
        return f"the module {name}"
    if any(known in attribute.lower() for known in _ATTENTION_NAMES):  # a Sequential of Linear, Tanh and Softmax, say
        return f"the module {attribute}"
    return None


def _library(part: nn.Module) -> str:
    return type(part).__module__.split(".")[0]
