"""`register` and `unregister`: every BERT that transformers builds runs on packed tokens from its construction on.

transformers' models, Auto classes, pipelines and the libraries on top of it all end a construction with `post_init`. While
registered, that call also does what `fastbert.accelerate` does. No class is replaced: `transformers.BertModel` stays what it
is, code from a model's repository is not passed over, and whoever imported a class earlier is served too.

Neither this file nor `register` imports torch or transformers: a program may still set the environment that those read.
"""

import functools
import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from fastbert.model.padding.policy import CHOICES, REGISTERED, PaddingPolicy, policy_from_option
from fastbert.utils.imports import after_import

VARIABLE = "FASTBERT_REGISTER"  # the environment variable that `import fastbert` reads
_OFF = ("", "0")
_BASE = "transformers.modeling_utils"
_BERT = "transformers.models.bert.modeling_bert"

_lock = threading.Lock()
_registered = False
_policy: PaddingPolicy = REGISTERED
# Each of our functions, by what stood in the place of PreTrainedModel.post_init when it was put there. It always calls that
# one, whatever is registered meanwhile, so a construction can lose no step of it and nothing calls itself.
_ours: dict[Callable[..., Any], Callable[..., Any]] = {}
_paused: ContextVar[bool] = ContextVar("fastbert_construction_paused", default=False)


def register(*, padding: str | None = None) -> None:
    """From now on every BERT that transformers builds in this process is fastbert's.

    `AutoModel…`, `pipeline`, sentence-transformers, SetFit, `BertModel(config)`: whatever ends its construction with
    transformers' `post_init`. Models built before are as they were: `fastbert.accelerate` swaps those. A second call changes
    padding, and registers again where another library has put its own `post_init` in our place. Threads may call it at any
    time; torch and transformers need not be imported yet.

    A class of one's own on BertModel itself stays as it is written. One on a head becomes a class of the same name between it
    and fastbert's head: `isinstance(model, YourHead)` holds, `type(model) is YourHead` does not.
    padding: what token states and logits hold at padding positions. "exact", the default, is transformers' values, since code
        that reads them cannot be seen from here; a head on the pooled state (classification, multiple choice, next sentence)
        computes none of them all the same where nothing can read them. "zeros" never computes them: faster, and right where
        whatever reads token states goes by attention_mask, as sentence-transformers' pooling does; `fastbert.accelerate` of the
        whole model afterwards finds that out. Holds for the models built from now on.
    Raises ValueError for another padding.
    """
    global _registered, _policy
    policy = policy_from_option(padding, "register") or REGISTERED
    with _lock:
        _policy, _registered = policy, True
    after_import(_BASE, _install)
    after_import(_BERT, _prepare)


def unregister() -> None:
    """transformers builds its own classes again. Models built meanwhile keep theirs: see `fastbert.restore`."""
    global _registered
    with _lock:
        _registered = False
        # Another library that wrapped post_init after us still calls ours, which then only passes the call on.
        base: Any = getattr(sys.modules.get(_BASE), "PreTrainedModel", None)
        below = base and _below(base.post_init)
        while below is not None:
            base.post_init = below
            below = _below(below)


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
    if value not in ("1", *CHOICES):
        raise ValueError(f"expected {VARIABLE} to be 0, 1, zeros or exact, got {value!r}")
    register(padding=None if value == "1" else value)


def _install(modeling_utils: ModuleType) -> None:
    base: Any = modeling_utils.PreTrainedModel
    with _lock:
        if _registered and _below(base.post_init) is None:
            base.post_init = _ours.setdefault(base.post_init, _over(base.post_init))


def _below(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """What ours calls; None of a function that is not ours."""
    return next((below for below, ours in _ours.items() if ours is function), None)


def _prepare(modeling_bert: ModuleType) -> None:
    """Imports what `_over` needs before a construction begins: transformers builds under other defaults of torch."""
    if _registered:
        importlib.import_module("fastbert.model.swap")


def _over(below: Callable[..., Any]) -> Callable[..., Any]:
    """A post_init that does what the one below does, and then swaps."""

    @functools.wraps(below)
    def post_init(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = below(self, *args, **kwargs)
        if is_registered() and _BERT in sys.modules:
            from fastbert.model.swap import swap_built

            swap_built(self, _policy)
        return result

    return post_init
