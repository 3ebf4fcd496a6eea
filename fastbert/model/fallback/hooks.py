"""Hooks and replaced forwards on live modules, and which of them change what a module computes."""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module
from transformers import modeling_utils
from transformers.utils import output_capturing

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
GLOBAL_HOOKS = tuple(f"_global{name}" for name in HOOKS)


def is_touched(module: nn.Module) -> bool:
    """Whether the module has any hook, or a `forward` set on the instance."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks) or (
        "forward" in module.__dict__
    )


def find_intervention(module: nn.Module, *, called: bool = False) -> str | None:
    """The hook or replaced forward that keeps a fused operation from computing what this module computes, or None.

    called: the module itself will be called, so what Accelerate and torch.distributed do around a call is done.
    """
    return find_hook(module, called=called) or find_replaced_forward(module, called=called)


def find_hook(module: nn.Module, *, called: bool = False) -> str | None:
    """The first hook on this module that a fused operation would skip, or that would see packed tensors; None without one."""
    if not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks):
        return None
    for name in HOOKS:
        for hook in getattr(module, name).values():
            origin = origin_of(hook)
            # transformers' own hooks record only in calls that fall back to transformers.
            if origin == output_capturing.__name__ or (called and origin.startswith("torch.distributed.")):
                continue
            if isinstance(module, nn.Embedding) and _makes_require_grad(hook):
                continue
            return f"a {name[1:-1].replace('_', ' ')} on {type(module).__name__}"
    return None


def find_global_hook() -> str | None:
    """The first hook that PyTorch runs around every module, or None."""
    for name in GLOBAL_HOOKS:
        for hook in getattr(torch_module, name).values():
            if origin_of(hook) != "torch.utils.module_tracker":  # records the names of modules, nothing else
                return f"a {name[1:-1].replace('_', ' ')} on every module"
    return None


def find_replaced_forward(module: nn.Module, *, called: bool = False) -> str | None:
    """The `forward` that was set on this instance, or None.

    That of Accelerate's device placement does not count where the module is called or has no parameters to be placed.
    """
    if "forward" not in module.__dict__:
        return None
    if _places_devices(getattr(module, "_hf_hook", None)) and (called or not module._parameters):
        original = getattr(module, "_old_forward", None)
        if getattr(original, "__func__", None) is type(module).forward:
            return None
    return f"a replaced forward on {type(module).__name__}"


def is_plain(module: Any, cls: type[nn.Module]) -> bool:
    """Whether calling the module does what its class does and nothing else."""
    if type(module) is not cls:
        return False
    return not is_touched(module) or (find_hook(module) is None and "forward" not in module.__dict__)


def difference_from(module: Any, cls: type[nn.Module]) -> str:
    """What keeps a module from being a plain `cls`: a hook, a replaced forward or its type."""
    name = type(module).__name__
    why = find_intervention(module)
    if why is None and type(module) is cls:
        why = f"a replaced forward on {name}"
    return why or f"{name} instead of {cls.__name__}"


def is_dropout(module: Any) -> bool:
    """Whether this drops elements as nn.Dropout does, or nothing at all."""
    return is_plain(module, nn.Dropout) or is_plain(module, nn.Identity)


def must_require_grad(embedding: nn.Module) -> bool:
    """Whether transformers wants the output of a frozen embedding to require a gradient."""
    return any(_makes_require_grad(hook) for hook in embedding._forward_hooks.values())


def _makes_require_grad(hook: Callable) -> bool:
    """transformers' hook that makes gradient checkpointing work on frozen embeddings; `BertModel` does the same itself."""
    name = getattr(hook, "__qualname__", "")
    return origin_of(hook) == modeling_utils.__name__ and name.endswith(
        "enable_input_require_grads.<locals>.make_inputs_require_grads"
    )


def origin_of(function: Callable) -> str:
    """The name of the module that defines a function, seen through functools.partial."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__module__", None) or type(function).__module__


def _places_devices(hook: Any) -> bool:
    if type(hook).__name__ == "SequentialHook":
        return all(map(_places_devices, hook.hooks))
    return (type(hook).__module__, type(hook).__name__) == ("accelerate.hooks", "AlignDevicesHook")
