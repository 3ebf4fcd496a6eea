"""Which activations have a fused form, which may be called on packed rows, and which need padded tensors."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import activations

from fastbert.model.fallback.hooks import find_intervention, is_touched
from fastbert.model.fallback.verdict import FUSED, Path, Verdict

ELEMENTWISE_MODULES = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Identity,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.ReLU,
    nn.ReLU6,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
)
ELEMENTWISE_FUNCTIONS = (
    F.gelu,
    F.relu,
    F.silu,
    F.mish,
    F.elu,
    F.selu,
    F.leaky_relu,
    F.hardswish,
    F.relu6,
    F.softplus,
    F.sigmoid,
    F.tanh,
    torch.relu,
    torch.sigmoid,
    torch.tanh,
)
GELU_TANH = (
    activations.NewGELUActivation,
    activations.FastGELUActivation,
    activations.AccurateGELUActivation,
    activations.GELUTanh,
)


def fused_activation(act: Any) -> str | None:
    """The fused operation that computes this activation's formula up to rounding, or None.

    act: a module or a function.
    """
    if act is F.gelu or type(act) is activations.GELUActivation:
        return "gelu_erf"
    if isinstance(act, GELU_TANH) and type(act) in GELU_TANH:
        return "gelu_tanh"
    if type(act) is nn.GELU:
        return "gelu_tanh" if act.approximate == "tanh" else "gelu_erf"
    if type(act) is nn.ReLU or act is F.relu or act is torch.relu:
        return "relu"
    return None


def activation_verdict(act: Any, fused: str | None) -> Verdict:
    """How an activation is computed. fused: `fused_activation(act)`."""
    if isinstance(act, nn.Module):
        for part in act.modules() if act._modules or is_touched(act) else ():
            why = find_intervention(part)
            if why is not None:
                return Verdict(Path.TRANSFORMERS, why)
    if fused is not None:
        return FUSED
    if _is_elementwise(act):
        return Verdict(Path.MODULES, f"the activation {_label_of(act)} is not fused")
    return Verdict(Path.TRANSFORMERS, f"the activation {_label_of(act)} may not be elementwise")


def _is_elementwise(act: Any) -> bool:
    """Whether this is an activation that is known to treat every element alone: a user's own may not."""
    known = type(act) in ELEMENTWISE_MODULES or type(act).__module__ == activations.__name__
    return known or any(act is function for function in ELEMENTWISE_FUNCTIONS)


def _label_of(act: Any) -> str:
    """The activation's name in a message."""
    return type(act).__name__ if isinstance(act, nn.Module) else getattr(act, "__name__", repr(act))
