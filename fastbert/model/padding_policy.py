"""What padding positions of the output hold, and who may read them.

By default they hold zeros, which saves their computation; with padding="exact" they hold what transformers computes there. A
reader of padding is whatever takes a state or a logit from a position where attention_mask is 0: a convolution on top, a mean
that ignores the mask, a retrieval model whose queries are filled up with [MASK] tokens.
"""

import enum
from typing import NamedTuple

from torch import nn
from transformers.modeling_utils import PreTrainedModel
from transformers.models.bert import modeling_bert as hf

CHOICES = ("zeros", "exact")


class Caller(enum.Enum):
    """The heads that call a BertModel, by what they read at padding. Any other caller may read any state."""

    POOLED_HEAD = enum.auto()  # a head that reads the pooled state only
    TOKEN_HEAD = enum.auto()  # a head that declares which positions its loss reads
    TOKEN_HEAD_WITHOUT_LOSS = enum.auto()  # the same without labels: somebody else's loss may read its logits


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


# Modules that read the states of tokens one beside another, whatever the mask says.
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
    are known to respect it, None where nobody can tell."""
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
