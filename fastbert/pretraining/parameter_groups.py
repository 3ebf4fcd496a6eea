"""Which parameters decay."""

from typing import Any

from torch import nn

from .value_checks import check_number


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimizer, with and without weight decay, in the order of the model's modules.

    No decay: the parameters of every nn.LayerNorm, and those whose own name in their module ends in `bias` (Devlin et al.
    2019, the exclusions of `optimization.py`). A tied parameter comes once, at its first module; it does not decay if any
    of its names is excluded. Frozen parameters are in neither group.

    Raises TypeError, ValueError where weight_decay is no number of at least 0 or nothing can be trained.
    """
    check_number("weight_decay", weight_decay)
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(model).__name__}")
    decays: dict[nn.Parameter, bool] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                here = not (isinstance(module, nn.LayerNorm) or name.endswith("bias"))
                decays[parameter] = decays.get(parameter, True) and here
    if not decays:
        raise ValueError(f"expected a model with parameters that require gradients, got none in {type(model).__name__}")
    return [
        {"params": [parameter for parameter, decay in decays.items() if decay], "weight_decay": float(weight_decay)},
        {"params": [parameter for parameter, decay in decays.items() if not decay], "weight_decay": 0.0},
    ]
