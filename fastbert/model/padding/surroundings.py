"""Which modules around a BertModel read token states whatever the mask says, and the padding policy that they need.

A convolution on top, a recurrent network, a retrieval model whose queries are filled up with [MASK] tokens.
"""

import warnings

from torch import nn
from transformers.modeling_utils import PreTrainedModel
from transformers.models.bert import modeling_bert as hf

from fastbert.model.padding.policy import PaddingPolicy, policy_of, set_policy
from fastbert.model.registry import REPLACEMENTS

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


def choose_padding(model: nn.Module, chosen: PaddingPolicy | None, where: str, stacklevel: int = 3) -> None:
    """Sets the policy of every BertModel inside `model`: the user's choice, else what the modules around it need.

    Warns where those need exact values, in a message that begins with `where`. stacklevel: from here to the user's line.
    """
    policy = chosen or surrounding_policy(model)
    if policy is None:
        return
    changed = False
    for part in model.modules():
        if type(part) is REPLACEMENTS[hf.BertModel] and (chosen or not policy_of(part).chosen):
            changed = changed or policy_of(part).exact != policy.exact
            set_policy(part, policy)
    if changed and policy.exact and chosen is None:
        warnings.warn(
            f"{where}: padding positions hold transformers' values (padding='exact'), since {policy.reason}. "
            "Where it respects the mask, fastbert.accelerate(model, padding='zeros') saves their computation.",
            UserWarning,
            stacklevel=stacklevel,
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
