"""`register` and `unregister`: every BERT that transformers builds runs on packed tokens from its construction on.

transformers' models, Auto classes, pipelines and the libraries on top of it all end a construction with `post_init`. While
registered, that call also does what `fastbert.accelerate` does. No class is replaced: `transformers.BertModel` stays what it
is, code from a model's repository is not passed over, and whoever imported a class earlier is served too.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from transformers.modeling_utils import PreTrainedModel

from fastbert.model.bert import BertPreTrainedModel
from fastbert.model.holders import holds_bert
from fastbert.model.padding.policy import PaddingPolicy, policy_from_option
from fastbert.model.swap import swap

VARIABLE = "FASTBERT_REGISTER"  # the environment variable that `import fastbert` reads
_OFF = ("", "0")

_lock = threading.Lock()
_registered = False
_policy: PaddingPolicy | None = None
_original: Any = None  # PreTrainedModel.post_init while ours is in its place
_paused: ContextVar[bool] = ContextVar("fastbert_construction_paused", default=False)


def register(*, padding: str | None = None) -> None:
    """From now on every BERT that transformers builds in this process is fastbert's.

    `AutoModel…`, `pipeline`, sentence-transformers, SetFit, `BertModel(config)`: whatever ends its construction with
    transformers' `post_init`. Models built before are as they were: `fastbert.accelerate` swaps those. A second call only
    changes padding. Threads may call it at any time.
    padding: what token states hold at padding positions, as in `fastbert.accelerate`. None chooses by the transformers model
        that is built; a plain torch.nn.Module around a BertModel is not seen, so pass "exact" where one reads padding.
    Raises ValueError for another padding.
    """
    global _registered, _policy, _original
    policy = policy_from_option(padding, "register")
    with _lock:
        _policy = policy
        _registered = True
        if _original is None:
            _original = PreTrainedModel.post_init
            PreTrainedModel.post_init = _post_init


def unregister() -> None:
    """transformers builds its own classes again. Models built meanwhile keep theirs: see `fastbert.restore`."""
    global _registered, _original
    with _lock:
        _registered = False
        # Another library that wrapped post_init after us still calls ours, which then does nothing.
        if _original is not None and PreTrainedModel.post_init is _post_init:
            PreTrainedModel.post_init = _original
            _original = None


def is_registered() -> bool:
    """Whether transformers builds fastbert's classes now, in this thread."""
    return _registered and not _paused.get()


@contextmanager
def transformers_classes() -> Iterator[None]:
    """Within the `with` block, in this thread, transformers builds its own classes: for what is compared with fastbert."""
    token = _paused.set(True)
    try:
        yield
    finally:
        _paused.reset(token)


def register_from_environment(value: str) -> None:
    """`register` as the environment variable says: 1, or a choice of padding; 0 or nothing leaves all as it is.

    Raises ValueError for another value.
    """
    if value in _OFF:
        return
    if value not in ("1", "zeros", "exact"):
        raise ValueError(f"{VARIABLE}: expected 0, 1, zeros or exact, got {value!r}")
    register(padding=None if value == "1" else value)


def _post_init(self: PreTrainedModel) -> None:
    original = _original
    if original is not None:
        original(self)
    # fastbert's own heads do the same in their post_init, for their own class name in the warning.
    if is_registered() and not isinstance(self, BertPreTrainedModel) and holds_bert(self):
        swap(self, _policy, f"fastbert.register ({type(self).__name__})")
