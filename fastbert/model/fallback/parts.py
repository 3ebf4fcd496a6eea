"""Where a layer of transformers keeps its modules and their weights."""

from typing import Any, NamedTuple

from torch import Tensor, nn


class LayerParts(NamedTuple):
    """The modules of a layer that compute something. self_attention: the container of the projections and their settings."""

    self_attention: Any
    query: Any
    key: Any
    value: Any
    attention_dropout: Any
    attention_dense: Any
    attention_norm: Any
    hidden_dropout: Any
    intermediate_dense: Any
    activation: Any
    output_dense: Any
    output_norm: Any
    output_dropout: Any


def parts_of(layer: nn.Module) -> LayerParts:
    """The parts of a layer whose containers are transformers' own. Reading `_modules` costs a tenth of an attribute."""
    modules: Any = layer._modules
    attention = modules["attention"]._modules
    self_attention, attention_output = attention["self"], attention["output"]._modules
    projections, output = self_attention._modules, modules["output"]._modules
    intermediate = modules["intermediate"]
    activation = intermediate._modules.get("intermediate_act_fn")
    return LayerParts(
        self_attention,
        projections["query"],
        projections["key"],
        projections["value"],
        projections["dropout"],
        attention_output["dense"],
        attention_output["LayerNorm"],
        attention_output["dropout"],
        intermediate._modules["dense"],
        activation if activation is not None else intermediate.intermediate_act_fn,
        output["dense"],
        output["LayerNorm"],
        output["dropout"],
    )


def weights_of(module: Any) -> tuple[Tensor, Tensor | None]:
    """(weight, bias) of a module; wrappers such as FSDP may keep them as attributes instead of parameters."""
    parameters = module._parameters
    if "weight" in parameters and "bias" in parameters:
        return parameters["weight"], parameters["bias"]
    return module.weight, module.bias


def unwrap(layer: nn.Module) -> nn.Module:
    """The layer inside wrappers that pass their arguments through: FSDP1 and PyTorch's checkpoint wrapper."""
    inside = inside_wrapper(layer)
    return layer if inside is None else unwrap(inside)


def inside_wrapper(module: Any) -> Any:
    """The module that such a wrapper holds, or None where `module` is no wrapper."""
    for name in ("_fsdp_wrapped_module", "_checkpoint_wrapped_module"):
        if name in module._modules and type(module).__module__.startswith("torch.distributed."):
            return module._modules[name]
    return None
