"""What padding positions of the output hold: zeros or transformers' values, and who chose.

By default they hold zeros, which saves their computation; with padding="exact" they hold what transformers computes there.
"""

import enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # `register` reads this file before the program has imported anything
    from torch import nn

CHOICES = ("zeros", "exact")


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
REGISTERED = PaddingPolicy(True, "built under fastbert.register")  # by programs that need not know of fastbert


def policy_from_option(padding: str | None, where: str) -> PaddingPolicy | None:
    """The policy of an option `padding`, or None where it is left open. Raises ValueError for another value."""
    if padding is None:
        return None
    if padding not in CHOICES:
        raise ValueError(f"{where}: expected padding 'zeros' or 'exact', got {padding!r}")
    return PaddingPolicy(padding == "exact", f"padding={padding!r}", True)


def policy_of(bert: "nn.Module") -> PaddingPolicy:
    return getattr(bert, "_padding_policy", DEFAULT)


def set_policy(bert: "nn.Module", policy: PaddingPolicy | None) -> None:
    """Kept in the instance, so that copies and pickles have it; no parameter or config changes, so no checkpoint has it."""
    if policy is None:
        bert.__dict__.pop("_padding_policy", None)
    else:
        bert.__dict__["_padding_policy"] = policy
