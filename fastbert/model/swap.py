"""`accelerate` and `restore`: transformers' BERT classes replaced by fastbert's and back, in place."""

import functools
import threading
import types
from typing import Any, TypeVar

from torch import nn
from transformers.models.bert import modeling_bert as hf

from fastbert.model import heads as _heads  # noqa: F401  (registers its classes)
from fastbert.model.bert import BertPreTrainedModel
from fastbert.model.calls import forget
from fastbert.model.holders import holds_bert, modules_in
from fastbert.model.padding.policy import PaddingPolicy, policy_from_option, set_policy
from fastbert.model.padding.surroundings import choose_padding
from fastbert.model.registry import ORIGINALS, REPLACEMENTS, adopt, register_outputs

Model = TypeVar("Model")
_lock = threading.RLock()  # while a class is made: its metaclass may run code of its own
PARTS = (hf.BertModel, hf.BertLayer, hf.BertPredictionHeadTransform)
HEADS = tuple(original for original in REPLACEMENTS if original not in PARTS)


def accelerate(model: Model, *, padding: str | None = None) -> Model:
    """Lets every transformers BERT inside `model` run on packed tokens, in place.

    model: a torch.nn.Module with a transformers BertModel inside (a head, a sentence-transformers or PEFT wrapper), or another
        object with such modules among its attributes (a pipeline, a SetFit model, a trainer). Found by exact module type; a
        user's subclass of a head counts as that head. Parameters stay the same tensors; a second call changes nothing.
    padding: what token states and logits hold at padding positions (attention_mask 0). "zeros" computes none of them; "exact"
        computes them all, equal to transformers. None chooses exact, with a warning that says so, where a module around the
        BertModel reads token states whatever the mask says (a recurrent network, a convolution, a pool, Flatten, attention, a
        known retrieval model), and zeros elsewhere; a model that was built under `fastbert.register` stays exact, but for the
        modules of sentence-transformers that are known to go by the mask.
    Returns model.
    Raises TypeError, naming what was looked through, where there is no BertModel, ValueError for another padding.
    """
    chosen = policy_from_option(padding, "accelerate")
    for module in modules_in(model, "accelerate"):
        _swap(module)
        choose_padding(module, chosen, "fastbert.accelerate")
    return model


def swap_built(model: nn.Module, policy: PaddingPolicy) -> None:
    """What `fastbert.register` does to a module at the end of its construction. policy: of each BertModel that is swapped here;
    one that was fastbert's before keeps its own."""
    if isinstance(model, BertPreTrainedModel) or not holds_bert(model):  # fastbert's own heads have just done so
        return
    fresh = [part for part in model.modules() if type(part) is hf.BertModel]
    _swap(model)
    for part in fresh:
        set_policy(part, policy)


def _swap(model: nn.Module) -> None:
    adopt(model)
    for part in model.modules():
        if isinstance(part, HEADS) and not isinstance(part, tuple(ORIGINALS)):
            cls: Any = type(part)
            part.__class__ = _with_fastbert_head(cls)
            register_outputs(type(part))
    _rebind_forwards(model)


def restore(model: Model) -> Model:
    """The reverse of `accelerate`, and of `quantize`: transformers' classes again, also for a model built with fastbert's.

    Raises TypeError where there is no BertModel.
    """
    for module in modules_in(model, "restore"):
        for part in list(module.modules()):
            if isinstance(part, hf.BertLayer) and hasattr(part, "unswap"):  # a further swap, as to fp8
                part.unswap()
            original = ORIGINALS.get(type(part)) or type(part).__dict__.get("_original_class")
            if original is not None:
                part.__class__ = original
                forget(part)
                set_policy(part, None)
        _rebind_forwards(module)
    return model


def _with_fastbert_head(cls: Any) -> Any:
    """A user's subclass of a head, with fastbert's head between it and transformers': one class, in all threads."""
    with _lock:
        return _make_with_fastbert_head(cls)


@functools.cache
def _make_with_fastbert_head(cls: Any) -> Any:
    replacement = next(REPLACEMENTS[base] for base in cls.__mro__ if base in REPLACEMENTS)
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (cls, replacement), names | {"_original_class": cls, "__reduce_ex__": _reduce})


def _reduce(self: Any, protocol: Any) -> tuple:
    """Pickles by the user's class: the one above is built at run time, so pickle cannot import it."""
    return _empty, (type(self)._original_class,), self.__getstate__()


def _empty(cls: Any) -> Any:
    swapped = _with_fastbert_head(cls)
    return swapped.__new__(swapped)


def _rebind_forwards(model: nn.Module) -> None:
    """Accelerate's device placement stores the forward of the class that a module had before."""
    for part in model.modules():
        original = part.__dict__.get("_old_forward")
        if original is None or not hasattr(part, "_hf_hook") or not (type(part) in ORIGINALS or type(part) in REPLACEMENTS):
            continue
        for cls in (*REPLACEMENTS, *ORIGINALS):
            if getattr(original, "__func__", None) is cls.forward:
                part.__dict__["_old_forward"] = types.MethodType(type(part).forward, part)
